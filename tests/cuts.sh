# shellcheck shell=bash
# shellcheck disable=SC2030,SC2031,SC2154,SC2164 # as in lib.sh
# A step that fails, and one that is cut short by Ctrl-C or a power cut, leave
# nothing that the next make takes for whole: it ends as one never disturbed.

# state: what a finished make has made: the tree, the base, the images and the tests,
# and facts without the folder that they name.
state() {
	local tree
	sed '/^repo=/d' "$out/origin"
	for tree in linux base; do
		git -C "$out/$tree" rev-parse HEAD 'HEAD^{tree}'
		git -C "$out/$tree" status --porcelain
	done
	git -C "$out/linux" fsck --no-dangling
	# shellcheck disable=SC1091 # made by scripts/get
	(. "$out/origin" && git -C "$repo" fsck --no-dangling)
	cat "$out"/*.key
	(cd "$out" && find -L linux base kselftest -name .git -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha1sum)
}

# undisturbed FILE: the state after a make in other folders that nothing disturbs.
undisturbed() {
	(
		export BUILD=$CASE/reference/build CACHE=$CASE/reference/cache
		out=$BUILD/${out##*/}
		# What lives on for a moment must not hold the lock.
		expect_ok make kernels 8>&-
		state > "$1.part" 2>&1
		mv "$1.part" "$1"
	)
}

# cut TOOL CALL LEAVES: on its call with these words the tool first fails, then
# is killed with all that runs, each time leaving half of its work behind.
cut() {
	export DIES=$2 LEAVES=$3
	stub dies "$1"
	touch "$CASE/armed"
	expect_fail "${4:-failed: .*cut short.*log: }" make kernels
	[ ! -e "$CASE/armed" ] || wrong "no call of $1 with '$2'"
	touch "$CASE/armed" "$CASE/killed"
	cut_short make kernels
	finishes
}

# finishes: the same again succeeds, and makes what an undisturbed one makes,
# which is the same for all cases that leave the series and the base as they are.
finishes() {
	local reference=$CASE/state.undisturbed
	[ ! -e "$CASE/armed" ] || wrong "nothing was cut"
	expect_ok make kernels
	state > "$CASE/state" 2>&1
	if [ -z "$KDIR" ] && git diff --quiet; then reference=$WORLD/state; fi
	exec 8> "$WORLD/lock"
	flock 8
	[ -e "$reference" ] || undisturbed "$reference"
	exec 8>&-
	diff "$reference" "$CASE/state" > "$CASE/differs" || wrong "is not what an undisturbed make makes: $(sed -n 2p "$CASE/differs")"
}

# shellcheck disable=SC2016 # the words are the stub's, with its arguments
{
t_cut_download() { cut apt-get ' download ' 'head -c 100 "$MINI"/*.deb > "$(basename "$MINI"/*.deb)"'; }
t_cut_unpack_package() { cut dpkg-deb ' -x ' 'dpkg-deb "$@"; find "$3" -type f -exec truncate -s 100 {} +'; }
t_cut_unpack_source() { cut tar ' -xf ' 'tar "$@"; rm -r "$4"/*/mm'; }
t_cut_import_add() { cut git ' add ' 'git add Kbuild'; }
t_cut_import_commit() { cut git ' commit ' ':'; }
t_cut_import_pack() { cut git ' repack ' 'mkdir -p "$GIT_DIR/objects/pack"; touch "$GIT_DIR/objects/pack/tmp_pack_x"'; }
t_cut_clone() { cut git ' clone ' 'for to; do :; done; mkdir -p "$to/.git/objects"'; }
t_cut_base_checkout() { cut git ' worktree add ' 'git "$@" --no-checkout || :; for to in "${@: -2:1}"; do mkdir -p "$to"; touch "$to/Kbuild"; done'; }
t_cut_apply() { cut git ' commit-tree ' ':' '.'; }
t_cut_branch() { cut git ' update-ref ' ':' '.'; }
t_cut_series_checkout() { cut git ' checkout ' 'touch "$2/.git/index.lock" "$2/Kbuild"'; }
t_cut_tag() { cut git ' tag ' ':' '.'; }
t_cut_configuration() { cut make ' allnoconfig' 'echo half > "$2"/out/.config || :; echo half > "${3#O=}/.config"'; }
t_cut_image() { cut make " ${image##*/}" 'mkdir -p "${3#O=}/'"${image%/*}"'"; echo half > "${3#O=}/'"$image"'"'; }
t_cut_headers() { cut make ' headers ' ':'; }
t_cut_tests() { cut make ' install ' 'for to; do :; done; mkdir -p "${to#*=}/mm"; echo half > "${to#*=}/mm/mini.c"'; }
}

t_cut_kdir_import() {
	kdir
	cut git ' commit ' :
}

# The series changed, and its checkout is cut short: what git had half done is
# not taken for work of the user's.
t_cut_series_changed() {
	expect_ok make kernels
	change_series
	export DIES=' checkout ' LEAVES
	# shellcheck disable=SC2016 # of the stub
	LEAVES='touch "$2/.git/index.lock"; echo half >> "$2/'"$(patched_file)"'"'
	stub dies git
	touch "$CASE/armed"
	expect_fail "failed: .*cut short" make kernels
	touch "$CASE/armed" "$CASE/killed"
	cut_short make kernels
	finishes
}

# Changed, and the build of the change cut short: the old image does not pass for the new.
t_cut_rebuild() {
	expect_ok make kernels
	change_series
	export DIES="${image##*/}" LEAVES=:
	stub dies make
	touch "$CASE/armed" "$CASE/killed"
	cut_short make kernels
	finishes
}

# When make has ended, a reader of its output comes to an end too.
t_output_is_let_go() {
	expect_ok make kernels
	find /proc/[0-9]*/fd -lname "$CASE/said" > "$CASE/holders" 2>/dev/null || true
	[ ! -s "$CASE/holders" ] || wrong "a process still holds the output: $(head -n 1 "$CASE/holders")"
}

# Two clones share a cache: the second waits, and downloads nothing again.
t_two_at_once() {
	local one other
	touch "$MINI/slow"
	cp -a . "$CASE/second"
	make tree > "$CASE/said.1" 2>&1 &
	one=$!
	BUILD=$CASE/build.2 make -C "$CASE/second" tree > "$CASE/said.2" 2>&1 &
	other=$!
	wait $one || wrong "the one fails: $(tail -n 1 "$CASE/said.1")"
	wait $other || wrong "the other fails: $(tail -n 1 "$CASE/said.2")"
	[ "$(grep -c ' download ' "$MINI/calls")" = 1 ] || wrong "downloads $(grep -c ' download ' "$MINI/calls") times"
	cmp "$out/tree.head" "$CASE/build.2/$BASE/tree.head"
	expect_ok make kernels
	finishes
}

# Two in one folder would break each other: the second waits, and says so.
t_build_waits() {
	expect_ok make tree
	mkdir -p "$out/linux/out"
	flock "$out/linux/out/lock" sh -c "touch '$CASE/held'; sleep 2; touch '$CASE/free'" &
	until [ -e "$CASE/held" ]; do sleep 0.1; done
	expect_ok scripts/build patched
	[ -e "$CASE/free" ] || wrong "does not wait"
	grep -q 'waiting for another build of the patched kernel' "$CASE/said" || wrong "does not say that it waits"
}
