# shellcheck shell=bash
# Shared by every script here: where things are, how to speak, how to fail.
# Sourced, never run. Callers have set -euo pipefail.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
BASE=${BASE:-7.3}
KDIR=${KDIR:-}
BUILD=${BUILD:-$TOP/build}
CACHE=${CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/uffd-wp}
ARCH=${ARCH:-$(uname -m)}
export TOP BASE KDIR BUILD CACHE ARCH
# What other programs say is read here, so they say it in one language.
export LC_ALL=C.UTF-8
unset LANGUAGE

# The tests that the series brings: what the verdict is about.
# shellcheck disable=SC2034 # of those who source this, scripts/results too
OWN="uffd-wp-pte uffd-wp-ranges uffd-wp-snapshot uffd-wp-clients uffd-wp-torture uffd-wp-faults"

# One line on what goes on, for a person who waits.
say() { printf '==> %s\n' "$*"; }

# One line on what was wrong and what to do; nothing after it is done.
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# full: one of our disks has no room for a file more. Not all programs say so:
# tar "wrote only 4096 bytes", git is "unable to write".
full() { { df -Pk "$BUILD" "$CACHE" 2>/dev/null || true; } | awk 'NR > 1 && $4 < 1024 { full = 1 } END { exit !full }'; }

# run LOG WHAT COMMAND...: output goes to LOG; a failure is one line with what
# failed, the log's own error or the full disk behind it, and where the log is.
# COMMAND is a program or a chain of &&: set -e does not reach into it.
run() {
	local log=$1 what=$2 said
	shift 2
	mkdir -p "${log%/*}"
	# The end of it is kept in memory too: the log itself may be on the full disk.
	said=$("$@" 2>&1 | tee "$log" 2>/dev/null | tail -n 1000; exit "${PIPESTATUS[0]}") && return
	if [[ $said == *'No space left on device'* ]] || full; then
		die "$what: no space left on the device; free some and run the same again (log: $log)"
	fi
	die "$what failed: $(grep -m1 -iE 'error: |error [0-9]|fatal|cannot|\*\*\* |^E: ' <<< "$said" || tail -n 1 <<< "$said") (log: $log)"
}

# need_space DIR MIB WHAT: say so before half of it is written.
need_space() {
	local free
	mkdir -p "$1" 2>/dev/null || die "$3 cannot be put in $1: no such folder can be made there"
	free=$(df -Pm "$1" | awk 'NR == 2 { print $4 }')
	[ "$free" -ge "$2" ] ||
		die "$3 needs $2 MiB in $1, which has $free MiB free; free some space, or name another folder with CACHE= or BUILD="
}

bases() { (cd "$TOP/kernels" && printf '%s\n' *.base) | sed 's/\.base$//' | sort -V | paste -sd' '; }

# The facts of the base: package, suites.
load_base() {
	[ -r "$TOP/kernels/$BASE.base" ] ||
		die "there is no base '$BASE'; use BASE= with one of: $(bases)"
	# shellcheck source=kernels/7.3.base
	. "$TOP/kernels/$BASE.base"
}

# The facts of the architecture: qemu, image, console.
load_arch() {
	[ -r "$TOP/kernels/$ARCH.arch" ] ||
		die "no guest is described for the architecture '$ARCH' (kernels/$ARCH.arch)"
	# shellcheck source=kernels/x86_64.arch
	. "$TOP/kernels/$ARCH.arch"
}

# The output folder of this base, and of a user's own tree beside it.
out() { printf '%s/%s' "$BUILD" "$BASE${KDIR:+-kdir}"; }

# The topics of the series, in the order of the file; a step may be of two.
topics() { awk '!/^#/ { n = split($1, t, ","); for (i = 1; i <= n; i++) if (!(t[i] in seen)) { seen[t[i]]; print t[i] } }' "$TOP/patches/$BASE/series"; }

# below TOPIC: the topics that it goes on top of, as a line of its cover letter says.
below() { sed -n 's/^# goes on: //p' "$TOP/patches/$BASE/cover.$1" 2>/dev/null || true; }

# apply_topic REPO COMMIT BRANCH TOPIC: a topic on COMMIT, or on what it goes on top of,
# which is BRANCH-below then.
apply_topic() {
	local below
	read -ra below < <(below "$4") || true
	"$TOP/scripts/apply" "$1" "$2" "$3-below" "${below[@]:-none}"
	"$TOP/scripts/apply" "$1" "$(git -C "$1" rev-parse "$3-below")" "$3" "$4"
}

# want COMMIT: all that decides what the tree is: the base, the patches, the new
# files. What is not there is said by those who need it.
want() {
	echo "$1"
	cd "$TOP" || return
	git hash-object "patches/$BASE/series" 2>&1 || true
	awk '!/^#/ { for (i = 2; i <= NF; i++) print $i }' "patches/$BASE/series" 2>&1 | while read -r file; do
		if [ -f "patches/$BASE/$file" ]; then file=patches/$BASE/$file; fi
		git hash-object "$file" 2>&1 || true
		[ ! -x "$file" ] || echo executable
	done
}

# What was made is good for as long as what it depends on stays the same. known NAME
# COMMAND...: does COMMAND, which prints all of that, print what it did at the last
# remember NAME COMMAND...? forget NAME before it is made anew.
known() { [ "$("${@:2}" | sha1sum)" = "$(cat "$1.key" 2>/dev/null)" ]; }
remember() { "${@:2}" | sha1sum > "$1.key.part" && mv "$1.key.part" "$1.key"; }
forget() { rm -f "$1.key"; }

# What a guest is, but for its kernel and its programs; and how things are built.
environment() { cat "$TOP"/scripts/{guest-init,rootfs,boot} "$TOP/kernels/$ARCH.arch"; "$qemu" --version; }
toolchain() { cat "$TOP/kernels/$ARCH.arch"; gcc --version | head -n 1; }

# kernel_files TREE COMMIT: what a kernel is made of, as it is there. A test is not.
# shellcheck disable=SC2034 # of scripts/build
kernel_only=(. ':!tools/testing' ':!Documentation' ':!MAINTAINERS')
kernel_files() {
	{ git -C "$1" ls-tree "$2" && git -C "$1" ls-tree "$2" tools/; } | grep -vE $'\t(Documentation|MAINTAINERS|tools|tools/testing)$'
}

# mm_tests TREE FOLDER HEADERS [MAKE WORD...]: builds programs of the mm selftests, named
# as they are to lie in FOLDER, with the uapi headers in HEADERS/usr.
mm_tests() { make -C "$1/tools/testing/selftests/mm" OUTPUT="$2" CC='ccache gcc' KHDR_INCLUDES="-isystem $3/usr/include" "${@:4}"; }

# guest_rows [ROWS]: the command line that runs these rows ("PROGRAM [PART OF A NAME]; ...")
# in the guest, or all of the series' own, as run_vmtests.sh would show them.
guest_rows() {
	local rows=${1:-} program part words wanted
	for program in $OWN; do
		words='' wanted=${rows:+no}
		while read -r part; do
			case "$part" in
			"$program") wanted='' ;;
			"$program "*) wanted='' words+=" '${part#"$program "}'" ;;
			esac
		done <<< "${rows//;/$'\n'}"
		[ -n "$wanted" ] || cat <<- END
			echo '# # running ./$program'; ./$program$words | sed -u 's/^/# # /'; status=\${PIPESTATUS[0]}
			case \$status in 0) echo '# ok 1 $program' ;; 4) echo '# ok 1 $program # SKIP' ;; *) echo "# not ok 1 $program # exit=\$status" ;; esac
		END
	done
}
