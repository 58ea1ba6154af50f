# shellcheck shell=bash
# shellcheck disable=SC2154,SC2164 # as in lib.sh
# Guests that fare badly, with the real unpatched kernel and small commands in
# place of the tests. Each ends in bounded time with one line, and no QEMU stays.

# guest COMMAND: boots it as the guest's only test.
guest() {
	mkdir -p "$out/kselftest"
	scripts/rootfs "$out/initrd" "$1"
}
boot() { scripts/boot "$BUILT_KERNEL" "$out/initrd" "$out/results/guest"; }

# Processes that have the case's folder in their command line, but its own.
left() {
	local pid
	for pid in /proc/[0-9]*; do
		if tr '\0' ' ' < "$pid/cmdline" 2>/dev/null | grep -F "$CASE/build" > /dev/null; then
			echo "${pid#/proc/}"
		fi
	done
}
alone() { [ -z "$(left)" ] || wrong "a process stays behind: $(tr '\0' ' ' < "/proc/$(left | head -n 1)/cmdline" | cut -c1-80)"; }

t_guest_good() {
	guest 'echo "ok 1 row"'
	expect_ok boot
	alone
	grep -qx 'ok 1 row' "$out/results/guest.ktap"
}

t_guest_hangs() {
	guest 'echo "ok 1 row"; sleep 1000'
	QUIET=8 expect_fail "the guest hangs: no word for 8 s; the last result was 'ok 1 row'; see .*guest.log" boot
	alone
}

t_guest_never_ends() {
	# shellcheck disable=SC2016 # of the guest
	guest 'while sleep 1; do n=$((n + 1)); echo "ok $n again"; done'
	LIMIT=40 expect_fail "did not end within 40 s; the last result was 'ok [0-9]+ again'; see .*guest.ktap" boot
	alone
}

t_guest_panics() {
	guest 'echo "ok 1 row"; echo c > /proc/sysrq-trigger; sleep 1000'
	QUIET=30 expect_fail "the kernel panicked: Kernel panic - .*sysrq.*; the last result was 'ok 1 row'" boot
	alone
	# The first program of all dies: nothing was run yet.
	printf '#!/bin/sh\nexit 3\n' > scripts/guest-init
	guest ''
	QUIET=30 expect_fail "the kernel panicked: Kernel panic - .*kill init.*; the last result was ''" boot
	alone
}

t_guest_dies() {
	# What a run of before left is not taken for the result of this one.
	mkdir -p "$out/results"
	printf '# guest: tainted 0\nok 1 old\n' > "$out/results/guest.ktap"
	guest 'echo "ok 1 row"; sleep 1; poweroff -f'
	expect_fail "the guest died before its tests ended; the last result was 'ok 1 row'; see .*guest.log" boot
	alone
}

t_kernel_missing() {
	mkdir -p "$out"
	expect_fail "there is no kernel $CASE/none; run make first" scripts/boot "$CASE/none" "$out/initrd" "$out/results/guest"
	expect_fail "$qemu failed: .*$out/initrd.*No such file" boot
}

t_qemu_cannot_start() {
	stub fails "$qemu"
	mkdir -p "$out"
	touch "$out/initrd"
	expect_fail "$qemu failed: $qemu: error: no room for a guest" boot
	alone
}

t_qemu_refuses() {
	mkdir -p "$out"
	touch "$out/initrd" "$CASE/kernel"
	expect_fail "$qemu failed: .*kernel" scripts/boot "$CASE/kernel" "$out/initrd" "$out/results/guest"
	alone
}

# Ctrl-C reaches the whole group, kill only the program.
t_boot_interrupted() {
	local target signal status
	guest 'sleep 1000'
	for signal in INT TERM; do
		for target in -1 1; do
			# Nothing in the background hears Ctrl-C, unless it is told to.
			env --default-signal=INT,QUIT setsid scripts/boot "$BUILT_KERNEL" "$out/initrd" "$out/results/guest" > "$CASE/said" 2>&1 &
			GROUP=$!
			for _ in {1..50}; do
				if grep -q 'Linux version' "$out/results/guest.log" 2>/dev/null; then break; fi
				sleep 0.2
			done
			[ -n "$(left)" ] || wrong "no guest to interrupt"
			kill -s $signal -- $((target * GROUP))
			status=0
			wait "$GROUP" || status=$?
			[ $status != 0 ] || wrong "$signal to ($target) is a success"
			sleep 0.3
			alone
			GROUP=
			rm "$out/results/guest.log"
			# A Ctrl-C that the program gets alone is no Ctrl-C of a terminal.
			[ $signal = TERM ] || break
		done
	done
}

t_test_unknown() {
	mkdir -p "$out/kselftest"
	echo mm:ksft_userfaultfd.sh > "$out/kselftest/kselftest-list.txt"
	TESTS='userfaultfd nosuch' expect_fail "the tree has no mm:ksft_nosuch.sh; see .*kselftest-list.txt" scripts/guests
}
