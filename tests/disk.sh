# shellcheck shell=bash
# shellcheck disable=SC2154,SC2164 # as in lib.sh
# A disk that is full: said before the work where its size is known, and as such
# where it is not; and with more room the same again succeeds.

# disk FOLDER SIZE: a disk of its own, gone with the case.
disk() {
	mkdir -p "$1"
	mount -t tmpfs -o "size=$2" tmpfs "$1"
}
grow() { mount -o "remount,size=$2" "$1"; }

# full: as if the disk had room when it was asked.
filled() { dd if=/dev/zero of="$1/filler" bs=4k > /dev/null 2>&1 || true; }

t_disk_small_cache() {
	own_mounts
	real df
	disk "$CACHE" 2m
	expect_fail "the source of $package .* needs [0-9]+ MiB in $CACHE, which has [0-9]+ MiB free; .*CACHE=" make tree
	[ ! -e "$CACHE/deb" ] || wrong "downloads all the same"
	grow "$CACHE" 9g
	expect_ok make tree
}

t_disk_small_build() {
	own_mounts
	real df
	disk "$BUILD" 2m
	# So that the cache has its room whatever the disk below has.
	disk "$CACHE" 9g
	expect_fail "the kernel trees .* needs? [0-9]+ MiB in $BUILD, which has [0-9]+ MiB free; .*BUILD=" make tree
	[ ! -e "$out/linux" ] || wrong "begins all the same"
	grow "$BUILD" 9g
	expect_ok make tree
}

# With need_space satisfied, the disk fills up on the way, at all kinds of places.
t_disk_full_cache() {
	local free
	own_mounts
	for free in 0 64 1500; do
		rm -rf "${BUILD:?}"
		disk "$CACHE" "$((free + 40))k"
		expect_fail "no space left.*free some" make tree
		grow "$CACHE" 100m
		expect_ok make tree
		whole
		umount "$CACHE"
	done
}

t_disk_full_build() {
	local free
	own_mounts
	expect_ok scripts/get
	rm -rf "$BUILD"
	for free in 4 100 1500; do
		disk "$BUILD" "${free}k"
		expect_fail "no space left.*free some" make tree
		grow "$BUILD" 100m
		expect_ok make tree
		whole
		umount "$BUILD"
	done
}

# run, by which all long steps are done, knows a full disk by what was said.
t_disk_full_step() {
	# shellcheck disable=SC2016,SC2317 # called by name
	full() { bash -c '. scripts/lib.sh; run "$BUILD/log" "writing the tests" sh -c "$1"' - "$1"; }
	expect_fail "writing the tests: no space left on the device; free some and run the same again \\(log: .*/log\\)" full 'cat COPYING > /dev/full'
	expect_fail "writing the tests failed: other error: why \\(log: .*/log\\)" full 'echo one; echo other error: why; echo last; exit 3'
	expect_fail "writing the tests failed: last \\(log: .*/log\\)" full 'echo one; echo last; exit 3'
	expect_ok full 'echo error: none'
	# The names of objects are no errors.
	expect_fail "writing the tests failed: a.c:1: error: why" full 'echo "  CC      uterror.o"; echo "a.c:1: error: why"; exit 2'
	# shellcheck disable=SC2016 # of the step
	# In whatever language the caller has it, and on whatever disk the log is.
	LC_ALL=C LANGUAGE=de expect_fail "no space left on the device" full \
		'[ "$LC_ALL$LANGUAGE" = C.UTF-8 ] && echo "No space left on device" || echo "Kein Platz"; exit 1'
	ln -sfn /dev/full "$BUILD/log"
	expect_fail "no space left on the device" full 'cat COPYING > /dev/full'
}
