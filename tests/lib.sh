# shellcheck shell=bash
# SC2034: the cases use it. SC2154: the facts that load_base and load_arch read.
# SC2164: tests/mishaps has set -e.
# shellcheck disable=SC2034,SC2153,SC2154,SC2164
# Shared by the cases of tests/mishaps: the small world they live in, and how
# they say what they expect. A case is a function t_NAME, in a process of its own.

TESTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
# shellcheck source=scripts/lib.sh
. "$TESTS/../scripts/lib.sh"
load_base
load_arch

# --- the world: what the cases share, made once and only read

# The real tree and kernel, of which the cases take what they need.
REAL=${REAL:-$(out)}
export REAL
BUILT_KERNEL=$REAL/unpatched/$image

make_world() {
	[ -e "$REAL/linux/.whole" ] || die "there is no $REAL/linux to take the mini tree from; run make first"
	house "$WORLD/house"
	mini_tree "$WORLD/tree"
	mini_package "$WORLD/tree" "$WORLD/$package.deb" "$BASE.4-1"
}

# The house as it is now, uncommitted files too, as a repository of one commit.
house() {
	mkdir -p "$1"
	git -C "$TOP" ls-files -z -co --exclude-standard | (
		cd "$TOP"
		while IFS= read -r -d '' file; do
			[ ! -e "$file" ] || cp --parents "$file" "$1"
		done
	)
	[ -f "$1/patches/$BASE/expected-failures" ] || : > "$1/patches/$BASE/expected-failures"
	repository "$1"
}

# commit_all REPO MESSAGE, with an identity that is not in its configuration.
commit_all() {
	git -C "$1" add -A
	git -C "$1" -c user.name=tests -c user.email=tests@localhost.invalid commit -q -m "$2"
}

repository() {
	git init -q -b main "$1"
	commit_all "$1" "$1"
}

# A kernel in miniature: the real files that the series touches, and a Makefile
# that makes of them, at once, what the real one makes in minutes.
mini_tree() {
	local tree=$1 files
	mkdir -p "$tree"/{include/uapi/linux,"arch/${karch%_64}/include/uapi/asm",tools/testing/selftests/mm,mm}
	mapfile -t files < <(sed -n 's,^--- a/,,p' "$TOP/patches/$BASE"/*.patch | sort -u)
	git -C "$REAL/linux" archive base MAINTAINERS mm/userfaultfd.c "${files[@]}" | tar -x -C "$tree"
	printf '# top\n' > "$tree/Kbuild"
	printf '*.o\n' > "$tree/.gitignore"
	printf 'int a;\n' | tee "$tree/include/uapi/linux/mini.h" > "$tree/arch/${karch%_64}/include/uapi/asm/mini.h"
	printf 'int b;\n' > "$tree/tools/testing/selftests/mm/mini.c"
	mini_makefile > "$tree/Makefile"
	# shellcheck disable=SC2016 # of make
	printf 'install:\n\tmkdir -p $(INSTALL_PATH)\n\tcp -r mm $(INSTALL_PATH)/\n' > "$tree/tools/testing/selftests/Makefile"
}

mini_makefile() {
	cat <<- END
		.RECIPEPREFIX = >
		VERSION = ${BASE%%.*}
		PATCHLEVEL = ${BASE#*.}
		SUBLEVEL = 4
		allnoconfig:
		> cp \$(KCONFIG_ALLCONFIG) \$(O)/.config
		${image##*/}:
		> @echo "  CC      mm/all.o"
		> mkdir -p \$(O)/${image%/*}
		> cat Kbuild mm/*.c \$(O)/.config > \$(O)/$image
		headers:
		> mkdir -p \$(O)/usr/include
		> cp -r include/uapi/. \$(O)/usr/include
		headers_install:
		> mkdir -p \$(INSTALL_HDR_PATH)/include
		> cp -r include/uapi/. \$(INSTALL_HDR_PATH)/include
	END
}

# mini_package TREE DEB VERSION: the same as Debian packs it, with a .gitignore
# that hides every new file at the top.
mini_package() {
	local root=$WORLD/deb.$$
	mkdir -p "$root/DEBIAN" "$root/usr/src"
	cp -a "$1" "$root/$package"
	echo '/*' >> "$root/$package/.gitignore"
	tar -C "$root" --remove-files -cJf "$root/usr/src/$package.tar.xz" "$package"
	printf '%s\n' "Package: $package" "Version: $3" "Architecture: all" \
		"Maintainer: none <none@localhost.invalid>" "Description: a kernel in miniature" > "$root/DEBIAN/control"
	dpkg-deb -Znone -b "$root" "$2" > /dev/null
	rm -rf "$root"
}

# --- a case

# begin NAME: a folder, house, build and cache of the case's own, none of the
# caller's settings, and the small archive in place of the real one.
begin() {
	NAME=$1
	CASE=$WORLD/$NAME
	mkdir -p "$CASE"/{bin,home,tmp}
	trap 'finish $?' EXIT
	trap 'echo "line $LINENO of ${BASH_SOURCE##*/}: $BASH_COMMAND" >> "$CASE/why"' ERR
	trap 'wrong "no end within its time"' TERM
	set -E
	exec 2> "$CASE/stderr"
	cp -a "$WORLD/house" "$CASE/house"
	cd "$CASE/house"
	unset MAKEFLAGS MFLAGS MAKELEVEL ONLY ROW ROWS CMD KERNEL STATIC QUIET LIMIT APPEND AUTHOR GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
	export CASE WORLD KDIR='' BUILD=$CASE/build CACHE=$CASE/cache
	export HOME=$CASE/home XDG_CONFIG_HOME=$CASE/home GIT_CONFIG_NOSYSTEM=1 MINI=$CASE/archive
	# Should a case miss its stubs, it still goes nowhere.
	export TMPDIR=$CASE/tmp http_proxy=http://localhost.invalid https_proxy=http://localhost.invalid
	out=$BUILD/$BASE
	mkdir -p "$MINI"
	ln -s "$WORLD/$package.deb" "$MINI/"
	for stub in apt-get apt-cache dpkg-query df; do
		stub "$stub"
	done
	PATH=$CASE/bin:$PATH
}

# stub FILE [AS]: this program of tests/stubs comes first in PATH.
stub() { ln -sfn "$TESTS/stubs/$1" "$CASE/bin/${2:-$1}"; }
real() { rm -f "$CASE/bin/$1"; }

# The line that the case has earned.
finish() {
	[ -z "${GROUP:-}" ] || kill -9 -- "-$GROUP" || true
	if [ -s "$CASE/skip" ]; then
		echo "ok - $NAME # SKIP $(head -n 1 "$CASE/skip")"
	elif [ "$1" = 0 ]; then
		echo "ok - $NAME"
	else
		echo "not ok - $NAME # $(cat "$CASE/why" "$CASE/stderr" 2>/dev/null | head -n 1)"
		[ -z "${KEEP:-}" ] || cp -a "$CASE" "$KEEP/"
	fi
	rm -rf "$CASE" 2>/dev/null || true
}

skip() {
	echo "$*" > "$CASE/skip"
	exit 0
}

wrong() {
	echo "$*" >> "$CASE/why"
	exit 1
}

# What was said beside progress: the complaint. Of a guest's last words, which
# may come before it, and of make's word that a recipe failed, nothing.
complaint() {
	sed -e '/^--- the last lines of /,/^boot: /{/^boot: /!d}' -e '/^==> /d' -e '/^make\(\[[0-9]*\]\)\?: /d' "$CASE/said"
}

# expect_fail REGEX COMMAND...: it fails, with one line, and that is the one.
expect_fail() {
	local regex=$1 lines
	shift
	if "$@" > "$CASE/said" 2>&1 < /dev/null; then
		wrong "succeeds: $*"
	fi
	mapfile -t lines < <(complaint)
	[ ${#lines[@]} = 1 ] || wrong "$* says ${#lines[@]} lines, not one: $(complaint | paste -sd'|')"
	[[ ${lines[0]} =~ $regex ]] || wrong "$* says '${lines[0]}', not '$regex'"
}

# expect_ok COMMAND...: it succeeds, and complains of nothing.
expect_ok() {
	"$@" > "$CASE/said" 2>&1 < /dev/null || wrong "fails: $*: $(complaint | head -n 3 | paste -sd'|')"
	[ -z "$(complaint)" ] || wrong "$* complains: $(complaint | paste -sd'|')"
}

# cut_short COMMAND...: something in it kills all of it, as a power cut would.
# GROUP: it has a process group of its own, which ends with the case at the latest.
cut_short() {
	local status=0
	setsid "$@" > "$CASE/said" 2>&1 < /dev/null &
	GROUP=$!
	wait $GROUP || status=$?
	GROUP=
	[ $status = 137 ] || wrong "$* was not cut short ($status): $(complaint | head -n 3 | paste -sd'|')"
}

root() { [ "$(id -u)" = 0 ]; }

# own_mounts: what the case mounts is gone with it, however it ends.
own_mounts() {
	[ -z "${OWN_MOUNTS:-}" ] || return 0
	root || skip "needs root"
	unshare --mount true || skip "needs the right to mount"
	trap - EXIT
	rm -rf "$CASE"
	exec env OWN_MOUNTS=1 unshare --mount "$TESTS/mishaps" --case "$NAME"
}

# fingerprint FOLDER: all of it but the times of reading.
fingerprint() {
	(cd "$1" && find . -printf '%p %y %m %U:%G %n %s %T@ %C@ %l\n' | LC_ALL=C sort && find . -type f -print0 |
		LC_ALL=C sort -z | xargs -0 sha1sum)
}
