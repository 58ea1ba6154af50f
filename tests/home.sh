# shellcheck shell=bash
# shellcheck disable=SC2154,SC2164 # as in lib.sh
# The tree, and the way home from it: make tree, refresh, series. Work of the
# user's is never thrown away, and what goes to and fro stays the same.

linux() { git -C "$out/linux" "$@"; }

# work NAME: a commit of the user's own in the tree.
work() {
	echo "int $1;" >> "$out/linux/mm/userfaultfd.c"
	commit_all "$out/linux" "mm: add $1

Topic: writenotify"
}
same_as_committed() { [ -z "$(git status --porcelain)" ] || wrong "changed: $(git status --porcelain | paste -sd'|')"; }

t_tree_round_trip() {
	expect_ok make tree
	whole
	expect_ok make refresh
	same_as_committed
	expect_ok make refresh
	same_as_committed
}

t_tree_again() {
	local file
	expect_ok make tree
	find "$out/linux" "$out/base" -type f -printf '%p %T@\n' | grep -v /.git/ > "$CASE/before"
	expect_ok make tree
	find "$out/linux" "$out/base" -type f -printf '%p %T@\n' | grep -v /.git/ | diff "$CASE/before" - > "$CASE/why"
	# A change to the series touches the files that it is in, and no others.
	file=$(patched_file)
	change_series
	expect_ok make tree
	whole
	find "$out/linux" "$out/base" -type f -newer "$out/origin" -printf '%P\n' | grep -v '^.git' | sort -u > "$CASE/touched"
	[ "$(grep -vx '.whole' "$CASE/touched" | paste -sd' ')" = "$file" ] || wrong "touches $(paste -sd' ' "$CASE/touched")"
}

t_refresh_without_tree() {
	expect_fail "there is no tree to refresh from; run make tree" make refresh
	same_as_committed
}

t_refresh_uncommitted() {
	local file
	expect_ok make tree
	for file in mm/userfaultfd.c mm/new.c new; do
		echo 'int h;' >> "$out/linux/$file"
		expect_fail "has changes that are not committed; commit them" make refresh
		same_as_committed
		linux checkout -q .
		linux clean -fdq
	done
	expect_ok make refresh
	same_as_committed
}

t_refresh_merge() {
	expect_ok make tree
	linux checkout -q -b side HEAD~1
	work i
	linux checkout -q series
	linux -c user.name=t -c user.email=t@localhost.invalid merge -q -m merged side
	expect_fail "the series has a merge; make it linear" make refresh
	same_as_committed
	linux reset -q --hard HEAD~1
	expect_ok make refresh
	same_as_committed
}

t_refresh_without_topic() {
	expect_ok make tree
	echo 'int v;' >> "$out/linux/mm/userfaultfd.c"
	commit_all "$out/linux" "mm: add v"
	expect_fail "'mm: add v' says no topic; add a line 'Topic: fixes'" make refresh
	same_as_committed
}

t_refresh_kdir() {
	kdir
	repository "$KDIR"
	expect_ok make tree
	expect_fail "call it without KDIR" make refresh
	same_as_committed
}

t_refresh_takes_home() {
	expect_ok make tree
	echo 'int j;' > "$out/linux/mm/uffd-new.c"
	printf 'all:\n' > "$out/linux/mm/uffd-new.sh"
	chmod +x "$out/linux/mm/uffd-new.sh"
	work j
	linux rev-parse 'HEAD^{tree}' > "$CASE/before"
	expect_ok make refresh
	grep -q 'mm-add-j.patch mm/uffd-new.c mm/uffd-new.sh$' "patches/$BASE/series" || wrong "the series does not name the new files"
	cmp mm/uffd-new.c "$out/linux/mm/uffd-new.c"
	for file in expected-failures cover.fixes; do
		git diff --quiet -- "patches/$BASE/$file" || wrong "patches/$BASE/$file is lost"
	done
	expect_ok make refresh
	rm -rf "$BUILD"
	expect_ok make tree
	whole
	linux rev-parse 'HEAD^{tree}' | cmp - "$CASE/before" || wrong "another tree comes out of what was taken home"
}

# A patch that is dropped in the tree is gone at home, its new files with it.
t_refresh_drops() {
	expect_ok make tree
	echo 'int k;' > "$out/linux/mm/uffd-new.c"
	work k
	expect_ok make refresh
	commit_all . "with k"
	linux reset -q --hard HEAD~1
	expect_ok make refresh
	[ "$(git diff --name-only HEAD~1 | wc -l)" = 0 ] || wrong "stays: $(git diff --name-only HEAD~1 | paste -sd' ')"
	[ ! -e mm/uffd-new.c ] || wrong "the dropped file stays"
}

# Cut short between the old patches and the new ones, nothing of either is lost.
t_refresh_cut_short() {
	local call file
	expect_ok make tree
	work l
	stub dies mv
	stub dies rm
	touch "$CASE/killed"
	# shellcheck disable=SC2016 # of the stub
	export DIES LEAVES='[ "$name" = mv ] || rm "$@"'
	for call in "-t $PWD/patches/$BASE " " $PWD/patches/$BASE/series " " $PWD/patches/$BASE/"; do
		touch "$CASE/armed"
		DIES=$call
		cut_short make refresh
		for file in expected-failures cover.fixes; do
			git diff --quiet -- "patches/$BASE/$file" || wrong "patches/$BASE/$file is lost"
		done
	done
	expect_ok make refresh
	ls "patches/$BASE/"*-mm-add-l.patch > /dev/null || wrong "the commit is not taken home"
	! git status --porcelain | grep -v " patches/$BASE/" > "$CASE/why" || wrong "stays behind"
}

# What was changed at home since make tree is not written over.
t_refresh_keeps_home() {
	local file
	expect_ok make tree
	work r
	file=$(awk '!/^#/ && NF > 2 && $3 != "MAINTAINERS" { print $3; exit }' "patches/$BASE/series")
	for file in "patches/$BASE"/0001-*.patch "patches/$BASE/series" $file; do
		echo "# a word" >> "$file"
		expect_fail "has changed here since make tree; .* git stash" make refresh
		[ "$(tail -n 1 "$file")" = "# a word" ] || wrong "$file is written over"
		git checkout -q .
	done
	expect_ok make refresh
}

# A step may change what an earlier one brings; alone it has nothing to carry.
t_refresh_changes_new_file() {
	expect_ok make tree
	echo 'int s;' > "$out/linux/mm/uffd-new.c"
	work s
	echo 'int t;' >> "$out/linux/mm/uffd-new.c"
	work t
	linux rev-parse 'HEAD^{tree}' > "$CASE/before"
	expect_ok make refresh
	linux rev-parse 'HEAD^{tree}' | cmp - "$CASE/before" || wrong "another tree comes out of what was taken home"
	commit_all . "with s and t"
	echo 'int u;' >> "$out/linux/mm/uffd-new.c"
	commit_all "$out/linux" "mm: add u

Topic: writenotify"
	expect_fail "'mm: add u' changes only what an earlier step brings; squash it" make refresh
	same_as_committed
}

t_tree_keeps_work() {
	expect_ok make tree
	work m
	linux rev-parse HEAD > "$CASE/before"
	expect_ok make tree
	sed -i 's/^Subject: \[PATCH\] /&Foo /' "patches/$BASE"/0001-*.patch
	expect_fail "has work that is not in patches/ yet, and patches/ has changed" make tree
	linux rev-parse HEAD | cmp - "$CASE/before" || wrong "the commit is gone"
	linux reset -q --hard HEAD~1
	echo 'int n;' >> "$out/linux/mm/userfaultfd.c"
	expect_fail "has work that is not in patches/ yet" make tree
	grep -qx 'int n;' "$out/linux/mm/userfaultfd.c" || wrong "the change is gone"
	linux checkout -q .
	echo 'int n;' > "$out/linux/mm/uffd-new.c"
	expect_fail "has work that is not in patches/ yet" make tree
	[ -e "$out/linux/mm/uffd-new.c" ] || wrong "the new file is gone"
	rm "$out/linux/mm/uffd-new.c"
	expect_ok make tree
	whole
	linux log --format=%s | grep ^Foo > /dev/null || wrong "the changed patch is not on the tree"
	# A newer base does not throw it away either.
	work o
	linux rev-parse HEAD > "$CASE/before"
	rm -rf "$CACHE/base"
	newer_package
	expect_fail "has work that is not in patches/ yet" make tree
	linux rev-parse HEAD | cmp - "$CASE/before" || wrong "the commit is gone"
}

# newer_package: the archive has a kernel with one more change.
newer_package() {
	cp -a "$WORLD/tree" "$CASE/newer"
	echo 'int p;' >> "$CASE/newer/Kbuild"
	rm "$MINI/$package.deb"
	mini_package "$CASE/newer" "$MINI/$package.deb" "$BASE.5-1"
}

t_tree_newer_base() {
	expect_ok make tree
	newer_package
	expect_ok make tree
	whole
	linux show base:Kbuild | grep -qx 'int p;'
	grep -q "^title=.*$BASE.5-1" "$out/origin"
}

t_series_names_what_is_missing() {
	expect_ok make tree
	cp "patches/$BASE/series" "$CASE/series"
	echo 'fixes 9999-none.patch' >> "patches/$BASE/series"
	expect_fail "patches/$BASE/series names 9999-none.patch, which does not exist" make tree
	sed '$s,$, mm/none.c,' "$CASE/series" > "patches/$BASE/series"
	rm -rf "$BUILD"
	expect_fail "series names the new file mm/none.c, which does not exist" make tree
	mkdir -p mm
	echo 'int q;' > mm/userfaultfd.c
	sed '$s,$, mm/userfaultfd.c,' "$CASE/series" > "patches/$BASE/series"
	expect_fail "mm/userfaultfd.c is new here, but the base has it" make tree
	rm "patches/$BASE/series"
	expect_fail "there is no patches/$BASE/series" make tree
	cp "$CASE/series" "patches/$BASE/series"
	expect_ok make tree
	whole
}

t_patch_is_no_patch() {
	local patch change
	patch=$(echo "patches/$BASE"/0001-*.patch)
	cp "$patch" "$CASE/patch"
	# Empty, without who, what or when, and cut off at several places.
	# shellcheck disable=SC2016 # of sed
	for change in d /^From:/d /^Subject:/d /^Date:/d '/^@@/,$d' '/^@@/{n;N;N;q}'; do
		sed "$change" "$CASE/patch" > "$patch"
		expect_fail "0001-[^ ]*\\.patch (is not a patch|does not apply): " make tree
	done
	cp "$CASE/patch" "$patch"
	expect_ok make tree
	whole
}

# Our lines stand in an entry that the tree has, in their order, and nowhere else.
t_maintainers_entry() {
	expect_ok make tree
	linux diff --stat base HEAD -- MAINTAINERS > "$CASE/why"
	[ "$(linux diff base HEAD -- MAINTAINERS | grep -c '^-[^-]')" = 0 ] || wrong "loses lines of MAINTAINERS"
	linux show HEAD:MAINTAINERS | sed -n "/^$(head -n 1 MAINTAINERS)\$/,/^$/p" > "$CASE/entry"
	sed 1d MAINTAINERS | grep -vxFf "$CASE/entry" > "$CASE/why" && wrong "not in the entry: $(cat "$CASE/why")"
	grep '^F:' "$CASE/entry" | sort -c
	sed -i '1s/$/ NONE/' MAINTAINERS
	expect_fail "MAINTAINERS has no entry '.* NONE'; name another" make tree
}

# As CONTRIBUTING.md has it: a new base begins with no patch, and gets those of another one.
t_new_base() {
	expect_ok make tree
	cp "kernels/$BASE.base" kernels/7.99.base
	mkdir patches/7.99
	touch patches/7.99/{series,expected-failures}
	expect_ok make tree BASE=7.99
	[ "$(git -C "$BUILD/7.99/linux" rev-parse HEAD)" = "$(git -C "$BUILD/7.99/linux" rev-parse base)" ] || wrong "is not the plain base"
	(
		cd "$BUILD/7.99/linux"
		git fetch -q "../../$BASE/linux" series "refs/tags/base:refs/tags/base-$BASE"
		GIT_COMMITTER_NAME=x GIT_COMMITTER_EMAIL=x@localhost.invalid git cherry-pick "base-$BASE..FETCH_HEAD" > /dev/null
	)
	expect_ok make refresh BASE=7.99
	sed 1d "patches/$BASE/series" > "$CASE/series"
	sed 1d patches/7.99/series | diff "$CASE/series" - > "$CASE/why"
	[ -z "$(git status --porcelain -- tools Documentation MAINTAINERS "patches/$BASE")" ] || wrong "the new base changes the old one"
	BASE=7.99 scripts/results figures --check > "$CASE/said"
	grep -q '^ok - none # SKIP there is no patches/7.99/figures' "$CASE/said"
}

# --- the mails

t_series_without_identity() {
	expect_fail "git does not know who sends this; set it with: git config --global user.name" make series
	git config --global user.name me
	expect_fail "git does not know who sends this" make series
	[ ! -e "$out/mails" ] || wrong "there are mails from nobody"
}

identity() {
	git config --global user.name "Jane Ö. Doe"
	git config --global user.email jane@localhost.invalid
}

t_series_without_cover() {
	identity
	rm "patches/$BASE/cover.writenotify"
	expect_fail "there is no patches/$BASE/cover.writenotify" make series
	[ ! -e "$out/mails" ] || wrong "there are mails without a cover letter"
}

t_series_mails() {
	local topic n mail mails
	identity
	expect_ok make series
	for topic in fixes writenotify; do
		mails=("$out/mails/$topic"/*.patch)
		mails=("${mails[@]:1}")
		n=$(grep -cE "^([a-z]+,)*${topic}[, ]" "patches/$BASE/series")
		[ ${#mails[@]} = "$n" ] || wrong "not $n mails and a cover letter of $topic"
		tr -d '\n' < "$out/mails/$topic/0000-cover-letter.patch" | grep -qF "$(head -n 1 "patches/$BASE/cover.$topic")" ||
			wrong "the cover letter has not the subject of cover.$topic"
		for mail in "${mails[@]}"; do
			[ "$(grep -c '^Signed-off-by: Jane Ö. Doe <jane@localhost.invalid>$' "$mail")" = 1 ] || wrong "${mail##*/} is not signed off"
			[ "$(git mailinfo /dev/null /dev/null < "$mail" | sed -n 's/^Email: //p')" = jane@localhost.invalid ] || wrong "${mail##*/} is not from the sender"
			! grep '^Topic: ' "$mail" > "$CASE/why" || wrong "${mail##*/} has our trailer"
		done
		git clone -q "$out/linux" "$CASE/am-$topic"
		git -C "$CASE/am-$topic" checkout -q base
		expect_ok git -C "$CASE/am-$topic" am -q "${mails[@]}"
		[ "$(git -C "$CASE/am-$topic" rev-parse 'HEAD^{tree}')" = "$(linux rev-parse "mails-$topic^{tree}")" ] || wrong "the mails of $topic give another tree"
	done
	grep -q 'is sent with each topic' "$out/mails/writenotify/0000-cover-letter.patch" || wrong "no word of the step that both topics have"
	# A topic that goes on top of others has its own mails only, and says so.
	mails=("$out/mails/check"/*.patch)
	[ ${#mails[@]} = $((1 + $(grep -c '^check ' "patches/$BASE/series"))) ] || wrong "${#mails[@]} mails of check"
	tr '\n' ' ' < "${mails[0]}" | grep -qF "on top of \"$(head -n 1 "patches/$BASE/cover.fixes")\"" || wrong "no word of what check goes on top of"
	# The tree itself stays as it is, and a second time gives the same mails.
	whole
	cp -a "$out/mails" "$CASE/mails"
	expect_ok make series
	diff -r -I '^Message-I' -I '^In-Reply-To' -I '^References' -I '^Date' "$CASE/mails" "$out/mails" > "$CASE/why"
}
