# shellcheck shell=bash
# shellcheck disable=SC2154,SC2164 # as in lib.sh
# The demonstration: what its checker says of dumps that were made up, and of the
# memory of the guest itself; and what make demo says of guests that fare badly.

build_check() {
	gcc -Wall -Wextra -Werror -O2 -o "$CASE/check" demo/check.c
	as --32 -mx86-used-note=no -o "$CASE/guest.o" demo/guest.S
	ld -m elf_i386 -N -Ttext 0x7c00 -e start --oformat binary -o "$CASE/guest.bin" "$CASE/guest.o"
}

# dump ROUNDS STEP [PYTHON]: the guest's memory after so many rounds and STEP pages
# of the next. PYTHON may change the list of the pages' bytes, v, or the memory, m.
dump() {
	python3 - "$CASE" "$@" <<- 'END'
		import struct, sys
		case, rounds, step = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
		m = bytearray(128 << 20)
		m[0x7c00:0x7e00] = open(case + '/guest.bin', 'rb').read()
		m[0x7000:0x7004] = struct.pack('<I', rounds)
		v = [(rounds + (i < step)) % 256 for i in range(25344)]
		exec(sys.argv[4] if len(sys.argv) > 4 else '')
		for i, b in enumerate(v):
		    if 0x100000 + i * 4096 < len(m):
		        m[0x100000 + i * 4096] = b
		open(case + '/dump', 'wb').write(m)
	END
}

# judged STATUS LAST-LINE
judged() {
	local status=0
	"$CASE/check" "$CASE/dump" > "$CASE/said" 2>&1 || status=$?
	[ $status = "$1" ] || wrong "the checker ends with $status, not $1: $(tail -n 1 "$CASE/said")"
	[[ $(tail -n 1 "$CASE/said") =~ $2 ]] || wrong "the checker says '$(tail -n 1 "$CASE/said")', not '$2'"
}

t_demo_whole() {
	build_check
	dump 7 1000
	judged 0 '^0 of 25344 pages are not of one moment, round 7$'
	[ "$(sed '$d' "$CASE/said" | paste -sd,)" = "1000 1,24344 0" ] || wrong "other runs: $(head -n 3 "$CASE/said")"
	# At the beginning and the end of a round, and where a byte turns over.
	for args in "7 0" "7 25344" "255 12" "256 12" "511 25344"; do
		# shellcheck disable=SC2086 # two words
		dump $args
		judged 0 '^0 of '
	done
}

t_demo_torn() {
	build_check
	dump 7 1000 'v[5000] += 1'
	judged 1 '^1 of 25344 '
	dump 7 1000 'v[500] -= 1'
	judged 1 '^1 of '
	# All pages agree, but with another moment than the rest of the memory.
	dump 7 1000 'v = [x + 2 for x in v]'
	judged 1 '^25344 of '
	dump 7 0 'v = [x - 1 for x in v]'
	judged 1 '^25344 of '
	# A step up is as wrong as two steps down.
	dump 7 1000 'v = v[::-1]'
	judged 1 '^1000 of '
	dump 7 1000 'v[1000:] = [(i // 100) % 256 for i in range(24344)]'
	judged 1 '^[1-9][0-9]* of '
}

t_demo_short() {
	build_check
	# Where the guest's pages end, and one byte before.
	dump 7 1000 'del m[0x6400000:]'
	judged 0 '^0 of '
	truncate -s -4096 "$CASE/dump"
	judged 2 'dump is too short'
	truncate -s -100M "$CASE/dump"
	judged 2 'dump is too short'
	truncate -s 0 "$CASE/dump"
	judged 2 'dump is too short'
	rm "$CASE/dump"
	judged 2 'dump cannot be read'
}

t_demo_wrong_dump() {
	build_check
	dump 0 0
	judged 2 'the guest has not run a single round'
	dump 7 1000 'm[0x7c00:0x7e00] = bytes(512)'
	judged 2 'is no dump of this guest'
	dump 7 1000 'm[:] = b"\xff" * len(m)'
	judged 2 'is no dump of this guest'
	"$CASE/check" > "$CASE/said" 2>&1 && wrong "succeeds without a dump"
	grep -qx 'check: usage: check DUMP' "$CASE/said"
}

# The guest itself, stopped wherever it is.
t_demo_guest() {
	local status
	build_check
	{
		# Until its boot sector has come to run; a slow host takes its time.
		for _ in $(seq 100); do
			echo cont
			sleep 1
			echo stop
			echo "pmemsave 0 0x8000000 \"$CASE/dump\""
			sleep 1
			status=0
			"$CASE/check" "$CASE/dump" > /dev/null 2>&1 || status=$?
			[ $status = 2 ] || break
		done
		echo quit
	} | "$qemu" -machine "$machine" -accel tcg -m 128M -nodefaults -no-user-config -display none -monitor stdio \
		-drive "if=ide,format=raw,snapshot=on,file=$CASE/guest.bin" > /dev/null
	judged 0 '^0 of 25344 pages are not of one moment, round [1-9]'
}

# In place of the guests: what they would have said.
begin_demo() {
	mkdir -p "$out"/{unpatched,patched}/"${image%/*}" "$out/rows"
	touch "$out"/{unpatched,patched}/"$image"
	printf 'release=%s.4\ntitle=made-up\n' "$BASE" > "$out/origin"
	# shellcheck disable=SC2016 # of the stub
	printf '#!/bin/sh\necho "$2" > "$1"\n' > scripts/rootfs
	cat > scripts/boot <<- 'END'
		#!/bin/sh
		mkdir -p "${3%/*}"
		cat "$BUILD/$BASE/rows/${3##*/demo-}" > "$3.ktap"
		status=0
		[ ! -e "$CASE/early" ] || status=1
		printf '# guest: runner exit %s\n# guest: tainted 0\n' $status >> "$3.ktap"
	END
	rows unpatched 9000 0 24000
	rows patched 0 0 0
}
rows() {
	printf 'row\tprivate anonymous\t%s\t20000\t%s\t9\t9\npages\tprivate anonymous\t%s\t25000 1;344 0;\n' \
		on "$2" on off "$3" off "on again" "$4" "on again" > "$out/rows/$1"
}
shows() { scripts/demo > "$CASE/said" 2>&1 || wrong "fails: $(tail -n 1 "$CASE/said")"; }
shows_not() {
	if demo/table "$out"/rows/{unpatched,patched} > "$CASE/said" 2>&1; then wrong "succeeds, but: $1"; fi
	grep -q "^not shown: $1" "$CASE/said" || wrong "does not say '$1'"
}

t_demo_verdict() {
	begin_demo
	shows
	grep -q '^| private anonymous  *| on  *| 20,000, 20,000  *| 9,000  *| 0  *|$' "$CASE/said" || wrong "another table"
	grep -q '<title>.*9000 before, 0 after' "$out/results/demo.svg" || wrong "another picture"
	printf 'row\tmemfd, shared\toff\trefused by QEMU: not with this memory\n' | tee -a "$out/rows/patched" >> "$out/rows/unpatched"
	shows
	grep -qx 'memfd, shared: refused by QEMU: not with this memory' "$CASE/said" || wrong "the refusal is not told"

	rows patched 1 0 0
	shows_not "private anonymous, KSM on: the patched kernel's snapshot is not whole: 1"
	rows patched 0 1 0
	shows_not "private anonymous, KSM off: the patched kernel's snapshot is not whole: 1"
	rows patched 0 0 0
	rows unpatched 9000 0 0
	shows_not "private anonymous, KSM on again: the unpatched kernel's snapshot is not torn: 0"
	rows unpatched 9000 1 9000
	shows_not "private anonymous, KSM off: the unpatched kernel's snapshot is not whole without KSM: 1"
	rows unpatched 9000 0 9000
	# A row that one of them does not have, or where QEMU refuses what it must not.
	sed -i '/again/d' "$out/rows/patched"
	shows_not "private anonymous, KSM on again: the patched kernel's snapshot is not whole: not run"
	rows patched 0 0 0
	sed -i 's/^row\tprivate anonymous\ton\t.*/row\tprivate anonymous\ton\trefused by QEMU: no/' "$out"/rows/*
	shows_not "private anonymous, KSM on: the patched kernel's snapshot is not whole: refused by QEMU"
	sed -i 's/refused by QEMU: no/no result: for want of time/' "$out"/rows/*
	shows_not "private anonymous, KSM on: the patched kernel's snapshot is not whole: no result"
	: > "$out/rows/patched"
	: > "$out/rows/unpatched"
	shows_not "there are no snapshots both with and without KSM"
	if scripts/demo > "$CASE/said" 2>&1; then wrong "succeeds, and showed nothing"; fi
	tail -n 1 "$CASE/said" | grep -q '^demo: this does not show what it is to show; see .*demo.md$' || wrong "ends with '$(tail -n 1 "$CASE/said")'"
}

t_demo_no_kernel() {
	expect_fail "there is no kernel $out/unpatched/.*; run make kernels first" scripts/demo
	begin_demo
	rm "$out/patched/$image"
	expect_fail "there is no kernel $out/patched/.*; run make kernels first" scripts/demo
	ARCH=none expect_fail "architecture 'none'" scripts/demo
}

t_demo_guest_dies() {
	begin_demo
	cat > scripts/boot <<- 'END'
		#!/bin/sh
		echo 'boot: the guest died before its tests ended' >&2
		exit 1
	END
	expect_fail 'boot: the guest died before its tests ended' scripts/demo
	git checkout -q scripts
	begin_demo
	touch "$CASE/early"
	expect_fail 'the demonstration ended early in the unpatched kernel: pages.*; see .*demo-unpatched.log' scripts/demo
}
