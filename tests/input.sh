# shellcheck shell=bash
# shellcheck disable=SC2154,SC2164 # as in lib.sh
# What a caller can get wrong: the base, the archive, the tree, the tools.

t_base_unknown() {
	expect_fail "no base '9.9'; use BASE= with one of: .*$BASE" env BASE=9.9 scripts/get
	expect_fail "no base '9.9'" make tree BASE=9.9
}

t_package_unknown() {
	sed -i 's/^package=.*/package=linux-source-9.9/' "kernels/$BASE.base"
	expect_fail "linux-source-9.9 is not in the archive.* it has: $package\\. .*kernels/$BASE.base" scripts/get
	git checkout -q kernels
	expect_ok scripts/get
}

t_archive_silent() {
	touch "$MINI/silent"
	expect_fail "the archive does not answer.*Failed to fetch" scripts/get
	rm "$MINI/silent"
	expect_ok scripts/get
	# What is there stays good when the archive goes away.
	rm "$CACHE/apt/updated"
	stub unreachable apt-get
	expect_ok scripts/get
}

# --- KDIR

t_kdir_no_folder() {
	KDIR=$CASE/none expect_fail "KDIR=$CASE/none is not a folder" scripts/get
}

t_kdir_no_kernel() {
	local file
	KDIR=$CASE/home expect_fail "is not a kernel tree; name the folder" scripts/get
	for file in Makefile Kbuild mm/userfaultfd.c; do
		rm -rf "$CASE/k"
		cp -a "$WORLD/tree" "$CASE/k"
		rm "$CASE/k/$file"
		KDIR=$CASE/k expect_fail "is not a kernel tree; name the folder" scripts/get
	done
}

# kdir: the mini tree as the user's own.
kdir() {
	export KDIR=${1:-$CASE/k}
	cp -a "$WORLD/tree" "$KDIR"
	out=$BUILD/$BASE-kdir
}

t_kdir_dirty() {
	kdir
	repository "$KDIR"
	echo 'int c;' >> "$KDIR/mm/userfaultfd.c"
	expect_fail "KDIR=$KDIR has local changes; commit or stash" scripts/get
	git -C "$KDIR" add -A
	expect_fail "has local changes" scripts/get
	commit_all "$KDIR" "mine"
	expect_ok make tree
	git -C "$out/linux" show HEAD:mm/userfaultfd.c | grep -qx 'int c;'
}

t_kdir_other_version() {
	kdir
	sed -i 's/^PATCHLEVEL = .*/PATCHLEVEL = 999/' "$KDIR/Makefile"
	expect_fail "KDIR=.* is Linux ${BASE%%.*}\\.999\\.4; there are series for: .*$BASE" scripts/get
	repository "$KDIR"
	expect_fail "there are series for: .*$BASE" scripts/get
}

# patched_file: one that the first patch changes.
patched_file() { sed -n 's,^--- a/,,p' "patches/$BASE"/0001-*.patch | head -n 1; }
# change_series: another word in the last patch of that file: none is on top of it.
changed_patch() { grep -l "^--- a/$(patched_file)" "patches/$BASE"/*.patch | tail -n 1; }
change_series() { sed -i '0,/^+\t/s/^+\t.*/& more/' "$(changed_patch)"; }

t_kdir_does_not_apply() {
	local file
	file=$(patched_file)
	kdir
	: > "$KDIR/$file"
	repository "$KDIR"
	expect_fail "0001-.*\\.patch does not apply: .*$file.*make refresh" make tree
	git -C "$KDIR" rm -q "$file"
	commit_all "$KDIR" "gone"
	expect_fail "0001-.*\\.patch does not apply: .*$file" make tree
	cp "$WORLD/tree/$file" "$KDIR/$file"
	commit_all "$KDIR" "back"
	expect_ok make tree
	whole
}

# whole: the tree has the series on the user's commit, and a work tree like it.
whole() {
	[ "$(git -C "$out/linux" rev-list --count base..HEAD)" = "$(grep -c '^[^#]' "patches/$BASE/series")" ] ||
		wrong "the series is not on the tree"
	[ -z "$(git -C "$out/linux" status --porcelain)" ] || wrong "the work tree is not the commit"
	[ -z "$(git -C "$out/base" status --porcelain)" ] || wrong "the base is not its commit"
}

# untouched COMMAND...: the user's tree is the same after it, byte for byte.
untouched() {
	fingerprint "$KDIR" > "$CASE/before"
	expect_ok "$@"
	fingerprint "$KDIR" > "$CASE/after"
	diff "$CASE/before" "$CASE/after" > "$CASE/changed" || wrong "the user's tree changed: $(sed -n 2p "$CASE/changed")"
}

# A status of git would write the index anew: its times are not those of the files.
stale_index() { find "$KDIR" -name Makefile -exec touch {} +; }

t_kdir_good() {
	kdir "$CASE/my linux"
	repository "$KDIR"
	git -C "$KDIR" tag v1
	git -C "$KDIR" worktree add -q "$CASE/other"
	echo 'notes' > "$KDIR/untracked"
	stale_index
	untouched make kernels
	whole
	[ "$(git -C "$out/linux" rev-parse base)" = "$(git -C "$KDIR" rev-parse HEAD)" ] || wrong "not the user's commit"
	[ ! -e "$out/linux/untracked" ] || wrong "takes what is not committed"
	untouched make kernels
	git config --global user.name me
	git config --global user.email me@localhost.invalid
	untouched make series
	grep -q "^base-commit: $(git -C "$KDIR" rev-parse HEAD)" "$out/mails/fixes/0000-cover-letter.patch"
	untouched make clean
}

t_kdir_worktree() {
	kdir
	repository "$KDIR"
	git -C "$KDIR" worktree add -q --detach "$CASE/other"
	echo 'int d;' >> "$CASE/other/mm/userfaultfd.c"
	commit_all "$CASE/other" "on no branch"
	KDIR=$CASE/other
	untouched make tree
	whole
	git -C "$out/linux" show HEAD:mm/userfaultfd.c | grep -qx 'int d;'
}

t_kdir_shallow() {
	kdir
	repository "$KDIR"
	echo 'int e;' >> "$KDIR/mm/userfaultfd.c"
	commit_all "$KDIR" "second"
	git clone -q --depth 1 "file://$KDIR" "$CASE/shallow"
	KDIR=$CASE/shallow
	untouched make tree
	whole
}

t_kdir_moved() {
	kdir
	repository "$KDIR"
	expect_ok make tree
	mv "$KDIR" "$CASE/elsewhere"
	KDIR=$CASE/elsewhere
	untouched make kernels
	whole
}

t_kdir_of_another_user() {
	root || skip "needs root"
	kdir
	repository "$KDIR"
	chown -R 65534 "$KDIR"
	expect_fail "KDIR=$KDIR is not read by git .* run: git config --global --add safe.directory $KDIR" scripts/get
	git config --global --add safe.directory "$KDIR"
	expect_fail "and again with $KDIR/.git" scripts/get
	git config --global --add safe.directory "$KDIR/.git"
	untouched make tree
	whole
}

t_kdir_plain() {
	kdir
	untouched make tree
	whole
	# Another folder, or the same with other content, is another tree.
	echo 'int f;' >> "$KDIR/mm/userfaultfd.c"
	untouched make tree
	whole
	git -C "$out/linux" show HEAD:mm/userfaultfd.c | grep -qx 'int f;'
	rm -rf "$CASE/b"
	cp -a "$WORLD/tree" "$CASE/b"
	echo 'int g;' > "$CASE/b/mm/new.o"
	KDIR=$CASE/b
	untouched make tree
	git -C "$out/linux" show HEAD:mm/new.o | grep -qx 'int g;'
}

t_kdir_built_in() {
	kdir
	touch "$KDIR/.config"
	expect_fail "KDIR=$KDIR has been built in; run 'make mrproper'" scripts/get
	rm "$KDIR/.config"
	expect_ok make tree
	# In a repository what was built is not what is committed.
	rm -rf "$BUILD"
	printf '.config\n' >> "$KDIR/.gitignore"
	repository "$KDIR"
	touch "$KDIR/.config"
	untouched make tree
	[ ! -e "$out/linux/.config" ] || wrong "the user's configuration is in the tree"
}

# --- tools and folders

unprivileged() {
	if root; then
		setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
	else
		"$@"
	fi
}

t_tool_missing_without_root() {
	chmod 755 "$WORLD" "$CASE"
	LACKS=bison expect_fail "as root, run: apt-get install --no-install-recommends bison$" unprivileged scripts/need
	[ ! -e "$MINI/calls" ] || wrong "calls apt-get"
	expect_ok unprivileged scripts/need
}

t_tool_missing_with_root() {
	root || skip "needs root"
	LACKS=bison expect_ok scripts/need
	grep -qx 'apt-get update' "$MINI/calls"
	grep -qx 'apt-get install -y --no-install-recommends bison' "$MINI/calls"
	touch "$MINI/silent"
	LACKS=bison expect_fail "apt-get update.*failed: E: .*log: .*need.log" scripts/need
}

t_not_debian() {
	real dpkg-query
	mkdir "$CASE/few"
	for tool in bash dirname uname sort paste sed mkdir id grep; do
		ln -s "$(command -v "$tool")" "$CASE/few/"
	done
	PATH=$CASE/few expect_fail "needs Debian.* install the equivalents of: .*bison" scripts/need
}

t_folder_not_writable() {
	CACHE=/dev/null/c expect_fail "the cache /dev/null/c cannot be written; .*CACHE=" scripts/get
	BUILD=/dev/null/b expect_fail "/dev/null/b.* cannot be .*BUILD=" scripts/get
	BUILD=/dev/null/b expect_fail "/dev/null/b.* cannot be .*BUILD=" make tree
}

t_architecture_unknown() {
	ARCH=pdp11 expect_fail "no guest is described for the architecture 'pdp11'" make kernels
}
