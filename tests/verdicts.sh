# shellcheck shell=bash
# shellcheck disable=SC2154,SC2164 # as in lib.sh
# What the results must not get away with: scripts/results and scripts/test on
# results that were made up. tests/results has the small parts of the former.

# The unpatched kernel loses the two rows that are claimed, and no others.
made_up() {
	mkdir -p "$out/results"
	printf 'repo=x\ncommit=x\nrelease=%s.4\ntitle=made-up\n' "$BASE" > "$out/origin"
	cat > "patches/$BASE/expected-failures" <<- END
		# a comment

		a: first patch
		 uffd-wp-pte ksm-* anon *
		b: second patch
		 uffd-wp-faults read memfd *
	END
	cat > "$out/results/unpatched.ktap" <<- END
		# guest: $BASE.4-unpatched
		TAP version 13
		1..1
		# timeout set to 900
		# selftests: mm: ksft_userfaultfd.sh
		# TAP version 13
		# # -unnin--./uffd-unit-tests
		# # running ./uffd-unit-tests
		# # -unnin--./uffd-unit-tests
		# # TAP version 13
		# # 1..5
		# # ok 1 wp on anon
		# # ok 2 wp on shmem
		# # ok 3 # SKIP wp on hugetlb
		# # not ok 4 wp on nothing
		# # ok 5 twice
		# # ok 6 twice
		# # [PASS]
		# ok 1 uffd-unit-tests
		# # running ./uffd-wp-faults
		# # -unnin--./uffd-wp-faults
		# # TAP version 13
		# # 1..2
		# # # read anon sync: 0.000 0.000 (limit 0.000) faults a page
		# # ok 1 read anon sync
		# # # read memfd sync: 0.000 1.000 (limit 0.000) faults a page
		# # not ok 2 read memfd sync # 64 faults for 64 pages
		# # [FAIL]
		# not ok 2 uffd-wp-faults # exit=1
		# # running ./uffd-wp-pte
		# # -unnin--./uffd-wp-pte
		# # TAP version 13
		# # 1..4
		# # # a word on the way: ok 9 none
		# # ok 1 mprotect-rw anon sync
		# # not ok 2 ksm-merge anon sync # lost: no event
		# # not ok 3 ksm-merge anon async # lost: not written
		# # ok 4 migrate memfd sync
		# # # Totals: pass:2 fail:2 xfail:0 xpass:0 skip:0 error:0
		# # [FAIL]
		# not ok 3 uffd-wp-pte # exit=1
		# # running ./uffd-wp-ranges
		# # TAP version 13
		# # 1..1
		# # ok 1 protect anon whole
		# ok 4 uffd-wp-ranges
		# # running ./uffd-wp-snapshot
		# # TAP version 13
		# # 1..1
		# # ok 1 none anon sync
		# ok 5 uffd-wp-snapshot
		# # running ./uffd-wp-clients
		# # TAP version 13
		# # 1..1
		# # ok 1 umap anon sync
		# ok 6 uffd-wp-clients
		# # running ./uffd-wp-torture
		# # TAP version 13
		# # 1..1
		# # ok 1 anon sync
		# ok 7 uffd-wp-torture
		# # SUMMARY: PASS=5 SKIP=0 FAIL=2
		# 1..7
		not ok 1 selftests: mm: ksft_userfaultfd.sh # exit=1
		# guest: runner exit 1
		# guest: tainted 0
	END
	# 262144: KUnit tests ran.
	sed -e 's/unpatched/patched/' -e 's/not ok \(.*\) # \(lost\|64 faults\).*/ok \1/' -e 's/0.000 1.000/0.000 0.000/' -e 's/not ok \(.*\) # exit=1/ok \1/' \
		-e 's/FAIL/PASS/' -e 's/tainted 0/tainted 262144/' "$out/results/unpatched.ktap" > "$out/results/patched.ktap"
	# What a kernel says of itself before anything is wrong.
	cat > "$out/results/patched.log" <<- END
		Linux version $BASE.4-patched
		Command line: console=ttyS0 panic=-1 oops=panic page_table_check=on
		Kernel command line: console=ttyS0 panic=-1 oops=panic page_table_check=on
		KTAP version 1
		1..1
		    # Subtest: shadow
		    1..1
		    ok 1 moves
		ok 1 shadow
		MCE: Killing uffd-unit-tests:133 due to hardware memory corruption fault at 7fd09c800000
		reboot: Power down
	END
	cp "$out/results/patched.log" "$out/results/unpatched.log"
	cp -a "$BUILD" "$CASE/good"
	cp "patches/$BASE/expected-failures" "$CASE/claims"
}

# spoil FILE SED-WORDS: the made-up results again, with this one change.
spoil() {
	rm -rf "$BUILD"
	cp -a "$CASE/good" "$BUILD"
	cp "$CASE/claims" "patches/$BASE/expected-failures"
	local file=$out/results/$1
	if [ "$1" = claims ]; then file=patches/$BASE/expected-failures; fi
	cp "$file" "$CASE/unspoilt"
	sed -i -e "$2" "$file"
	! cmp -s "$file" "$CASE/unspoilt" || wrong "'$2' changes nothing in $1"
}

not_ok() { sed -n '/^not ok/p' "$CASE/verdict"; }
verdict() { scripts/results verdict > "$CASE/verdict" 2> "$CASE/compared"; }

t_results_good() {
	made_up
	verdict
	[ -z "$(not_ok)" ] || wrong "good results are $(not_ok | paste -sd'|')"
	[ "$(grep -c '^ok - patched: uffd-wp-pte .* .* ' "$CASE/verdict")" -ge 4 ] || wrong "not every row is named"
	[ "$(grep -c '^ok - control: ' "$CASE/verdict")" -ge 2 ] || wrong "not every claimed row is named"
	scripts/results report > "$CASE/table"
	grep -qE '^\| ksm-merge +\| anon +\| lost +\| kept +\|' "$CASE/table" || wrong "the table has no row ksm-merge lost, kept"
	grep -qE '^\| mprotect-rw +\| anon +\| kept +\| kept +\|' "$CASE/table" || wrong "the table has no row mprotect-rw kept, kept"
	grep -qE '^\| +\| memfd +\| 1.00 +\| 0.00 +\| 0.00 +\|' "$CASE/table" || wrong "the table has no row read 1.00, 0.00, 0.00"
	scripts/results compare > "$CASE/table"
	grep -qE '^\| uffd-unit-tests +\| 4/1/1 +\| 4/1/1 +\|' "$CASE/table" || wrong "upstream's counts are not 4/1/1"
}

t_results_bad() {
	made_up
	# What is spoilt, how, and the one line (or two) that must say so.
	while IFS=$'\t' read -r file change count regex; do
		spoil "$file" "$change"
		verdict || true
		[ "$(not_ok | wc -l)" = "$count" ] || wrong "$file $change: says $(not_ok | paste -sd'|'), not $count lines"
		not_ok | grep -E -- "$regex" > /dev/null || wrong "$file $change: says $(not_ok | paste -sd'|'), not $regex"
	done < <(sed -E 's/\t+/\t/g' <<- 'END'
		unpatched.ktap	s/not ok 2 ksm-merge anon sync #.*/ok 2 ksm-merge anon sync/	1	ksm-merge anon sync # it does not: ok, but 'a: first patch' claims
		unpatched.ktap	s/not ok 2 ksm-merge anon sync #.*/ok 2 ksm-merge anon sync # SKIP why/	1	ksm-merge anon sync # it does not: skip
		unpatched.ktap	s/ok 4 migrate memfd sync/not & # lost: no event/	1	migrate memfd sync # no patch claims it: lost: no event
		unpatched.ktap	/ok 4 migrate/d	1	unpatched: all planned rows of uffd-wp-pte ran # 3 of 4
		unpatched.ktap	/running .*uffd-wp-pte/,/not ok 3 uffd/d	2	unpatched: all planned rows of uffd-wp-pte ran # 0 of
		unpatched.ktap	s/ 1\.\.4/ 1..0 # SKIP needs root/	1	unpatched: all planned rows of uffd-wp-pte ran # 4 of no plan
		claims	$a c: third patch\n\tuffd-wp-pte fork anon sync	1	c: third patch # no row matches its claim uffd-wp-pte fork anon sync
		claims	$a c: third patch\n\tksm-merge	1	c: third patch # no row matches
		unpatched.ktap	s/not ok 2 read memfd sync #.*/ok 2 read memfd sync/	1	uffd-wp-faults read memfd sync # it does not: ok, but 'b: second patch' claims
		claims	s/anon \*/anon sync/	1	ksm-merge anon async # no patch claims it
		claims	/ksm/d	2	ksm-merge anon sync # no patch claims it
		patched.ktap	s/ok 2 ksm-merge anon sync/& # SKIP no ksm/	1	patched: uffd-wp-pte ksm-merge anon sync # skip no ksm
		patched.ktap	s/ok 2 ksm-merge anon sync/not & # lost: no event/	1	patched: uffd-wp-pte ksm-merge anon sync # lost: no event
		patched.ktap	/ok 4 migrate/d	1	patched: all planned rows of uffd-wp-pte ran # 3 of 4
		patched.ktap	/ok 4 migrate/,$d	11	patched: not tainted # tainted: no word
		patched.ktap	s/ok 3 uffd-wp-pte$/not & # exit=139/	1	uffd-wp-pte.* exit=139
		patched.ktap	s/ok 2 read memfd sync/not & # 64 faults/	1	patched: uffd-wp-faults read memfd sync # 64 faults
		patched.ktap	/ok 1 read anon sync/d	1	patched: all planned rows of uffd-wp-faults ran # 1 of 2
		patched.ktap	s/ok 2 uffd-wp-faults$/not & # exit=139/	1	uffd-wp-faults.* exit=139
		patched.ktap	s/tainted 262144/tainted 512/	1	patched: not tainted # tainted: 512
		patched.ktap	s/tainted 262144/tainted 262656/	1	patched: not tainted # tainted: 512
		patched.log	$i ------------[ cut here ]------------\nWARNING: CPU: 0 PID: 9 at mm/memory.c:1	1	patched: clean log # WARNING: CPU: 0
		patched.log	$i uffd-wp-ranges invoked oom-killer: gfp_mask=0xcc0\nCall Trace:\nBUG: Bad page map\nno killable processes	1	patched: clean log # BUG: Bad
		patched.log	$i uffd-wp-ranges invoked oom-killer: gfp_mask=0xcc0	1	patched: clean log # uffd-wp-ranges invoked
		patched.log	s/    ok 1 moves/    not ok 1 moves/	1	patched: KUnit moves # see patched.log
		patched.log	/^    ok 1/d	1	patched: KUnit tests ran # patched.log has none
		patched.log	$i BUG: Bad page map in process a	1	patched: clean log # BUG: Bad
		patched.log	$i kernel BUG at mm/page_table_check.c:98!	1	patched: clean log # .*BUG at
		patched.log	1i WARNING: early	1	patched: clean log # WARNING: early
		patched.log	$i INFO: task khugepaged:33 blocked for more than 120 seconds.	1	patched: clean log # INFO: task
		patched.ktap	s/ok 2 wp on shmem/not &/	1	upstream suites
		patched.ktap	s/ok 2 wp on shmem/ok 2 # SKIP wp on shmem/	1	upstream suites
		patched.ktap	s/ok 2 wp on shmem/& # SKIP no shmem/	1	upstream suites
		patched.ktap	/ok 2 wp on shmem/d	1	upstream suites
		patched.ktap	/ok 6 twice/d	1	upstream suites
		patched.ktap	s/ok 1 uffd-unit-tests/not & # exit=1/	1	upstream suites
	END
	)
}

# Without a row that fails before, nothing shows that the tests can fail.
t_results_without_control() {
	made_up
	spoil claims '/uffd-wp/d'
	cp "$out/results/patched.ktap" "$out/results/unpatched.ktap"
	verdict || true
	grep -q '^not ok - control: ' "$CASE/verdict" || wrong "passes without a control"
}

# compare names the test that is worse, and is the one that fails.
t_results_compared() {
	made_up
	while IFS=$'\t' read -r change regex; do
		spoil patched.ktap "$change"
		if scripts/results compare > "$CASE/said" 2>&1; then wrong "passes: $change"; fi
		grep -qE -- "$regex" "$CASE/said" || wrong "$change: does not say $regex"
		grep -q "^compare: .* does worse" "$CASE/said"
	done < <(sed -E 's/\t+/\t/g' <<- 'END'
		s/ok 2 wp on shmem/not & # why not/	^  uffd-unit-tests: wp on shmem: fail why not
		s/ok 2 wp on shmem/ok 2 # SKIP wp on shmem/	^  uffd-unit-tests: wp on shmem: skip
		/ok 2 wp on shmem/d	^  uffd-unit-tests: wp on shmem: not run
		s/ok 1 uffd-unit-tests/not & # exit=1/	^  suite: uffd-unit-tests: fail exit=1
	END
	)
	# What did not pass before may stay as it is, or get better.
	spoil patched.ktap 's/ok 3 # SKIP wp on hugetlb/ok 3 wp on hugetlb/'
	scripts/results compare > "$CASE/said"
	spoil patched.ktap 's/not ok 4 wp on nothing/ok 4 wp on nothing/'
	scripts/results compare > "$CASE/said"
	rm "$out/results/"*.ktap
	if scripts/results compare > "$CASE/said" 2>&1; then wrong "passes without results"; fi
}

# make alone, without make test, is as strict on the rows.
t_results_reported() {
	made_up
	while IFS=$'\t' read -r change regex; do
		spoil patched.ktap "$change"
		if scripts/results report > "$CASE/said" 2>&1; then wrong "passes: $change"; fi
		grep -qE -- "$regex" "$CASE/said" || wrong "$change: does not say $regex"
		[ "$(grep -c "^report: " "$CASE/said")" = 1 ]
	done < <(sed -E 's/\t+/\t/g' <<- 'END'
		s/ok 2 ksm-merge anon sync/not & # lost: no event/	^  ksm-merge anon sync: lost: no event
		s/ok 2 read memfd sync/not & # 64 faults/	^  read memfd sync: 64 faults
		/ok 1 read anon sync/d	^  read anon sync: not run
		/ok 4 migrate/d	^  migrate memfd sync: not run
		/ok 4 migrate/,$d	^  migrate memfd sync: not run
		/ok [1-4] .*sync/d	^  ksm-merge anon async: not run
	END
	)
}

# begin_guests BOOT: kernels and tests that are none, and BOOT in place of scripts/boot.
begin_guests() {
	local file
	mkdir -p "$out"/{kselftest/mm,{unpatched,patched}/"${image%/*}"}
	for file in kselftest/mm/uffd-stress {unpatched,patched}/"$image"; do
		echo one > "$out/$file"
	done
	for file in $OWN; do
		echo one > "$out/kselftest/mm/$file"
	done
	export OWN
	mkdir -p "$out/results"
	echo mm:ksft_userfaultfd.sh > "$out/kselftest/kselftest-list.txt"
	# shellcheck disable=SC2016 # of the stub
	printf '#!/bin/sh\necho "$2" > "$CASE/command"\n' > scripts/rootfs
	# shellcheck disable=SC2016
	printf '#!/bin/sh\necho "${3##*/}" >> "$CASE/booted"\n: > "$3.log"\n%s\n' "$1" > scripts/boot
	export TESTS=userfaultfd
}
# boots NAME...: scripts/guests boots these, and nothing else.
boots_now() {
	: > "$CASE/booted"
	scripts/guests > "$CASE/said" || wrong "fails: $(tail -n 1 "$CASE/said")"
	[ "$(paste -sd' ' "$CASE/booted")" = "$*" ] || wrong "boots '$(paste -sd' ' "$CASE/booted")', not '$*'"
}

# What has run for the same kernel, guest and programs is not run again.
t_guests_once() {
	local program row
	# shellcheck disable=SC2016 # of the stub
	begin_guests 'for p in uffd-stress $OWN; do
		case "$3" in *-changed) grep -q "running ./$p" "$CASE/command" || continue ;; esac
		row=${3##*/}; [ $p != uffd-stress ] || row=row
		not=; if [ "${3##*/} $p" = "$(cat "$CASE/fails")" ]; then not="not "; fi
		printf "# # running ./%s\n# # 1..1\n# # %sok 1 %s\n# ok 1 %s\n" "$p" "$not" "$row" "$p"
	done > "$3.ktap"; echo "# guest: tainted $(cat "$CASE/taint")" >> "$3.ktap"'
	echo 0 | tee "$CASE/taint" > "$CASE/fails"
	boots_now unpatched patched
	boots_now
	# A program of the series is run alone, and takes the place of the old one.
	echo two > "$out/kselftest/mm/uffd-wp-pte"
	boots_now unpatched-changed patched-changed
	[ "$(grep -o 'running ./[a-z-]*' "$CASE/command")" = "running ./uffd-wp-pte" ] || wrong "runs $(cat "$CASE/command")"
	scripts/results rows "$out/results/patched.ktap" | sort > "$CASE/rows"
	for program in uffd-stress $OWN; do
		printf 'suite\tok\t%s\t\n' "$program"
		case $program in uffd-stress) row=row ;; uffd-wp-pte) row=patched-changed ;; *) row=patched ;; esac
		printf '%s\tok\t%s\t\n' "$program" "$row"
	done | sort | diff "$CASE/rows" - > "$CASE/why" || wrong "is merged to $(paste -sd'|' "$CASE/rows")"
	boots_now
	# What fails on the patched kernel is asked again, alone; what its log says, as a whole.
	echo three > "$out/kselftest/mm/uffd-wp-pte"
	echo "patched-changed uffd-wp-pte" > "$CASE/fails"
	boots_now unpatched-changed patched-changed
	boots_now patched-changed
	echo 0 > "$CASE/fails"
	boots_now patched-changed
	boots_now
	echo four > "$out/kselftest/mm/uffd-wp-pte"
	echo 512 > "$CASE/taint"
	boots_now unpatched-changed patched-changed
	scripts/results good unpatched && wrong "forgets what the second guest says"
	boots_now patched
	echo 0 > "$CASE/taint"
	boots_now patched
	boots_now
	# Upstream's, a kernel, and the guest itself are another matter.
	echo two > "$out/kselftest/mm/uffd-stress"
	boots_now unpatched patched
	echo two > "$out/patched/$image"
	boots_now patched
	echo "append='quiet'" >> "kernels/$ARCH.arch"
	boots_now unpatched patched
	echo "# another word" >> scripts/guest-init
	boots_now unpatched patched
	# What failed is not remembered.
	echo three > "$out/patched/$image"
	echo three > "$out/kselftest/mm/uffd-wp-faults"
	cp scripts/boot "$CASE/boot"
	sed -i '$s/$/; exit 1/' scripts/boot
	if scripts/guests > "$CASE/said" 2>&1; then wrong "passes though the guest fails"; fi
	cp "$CASE/boot" scripts/boot
	boots_now unpatched patched
}

# Upstream's tests race: what the patched kernel does not pass it gets to run again,
# and the verdict boots nothing.
t_guests_again() {
	# shellcheck disable=SC2016 # of the stub
	begin_guests 'if [ "${3##*/}" = patched ] && [ -e "$CASE/races" ]; then not="not "; fi
		printf "# %sok 1 uffd-stress\n" "$not" > "$3.ktap"
		printf "# # running ./%s\n# # ok 1 row\n" $OWN >> "$3.ktap"
		echo "# guest: tainted 0" >> "$3.ktap"'
	boots_now unpatched patched
	touch "$CASE/races"
	echo two > "$out/patched/$image"
	boots_now patched again
	scripts/results compare > "$CASE/said"
	grep -q '^not passed by the patched kernel at first, but in a second boot:$' "$CASE/said"
	boots_now
	# A second boot of another kernel says nothing of this one.
	echo three > "$out/patched/$image"
	scripts/guests patched > "$CASE/said"
	if scripts/results compare > "$CASE/said" 2>&1; then wrong "an old second boot stands for a new first one"; fi
}

# make torture: what fails is said, with the seed, and a guest that ends early is no success.
t_torture() {
	local row='# anon sync: 400 operations in 2 histories from seed 7, 90 accesses, 30 reported, 5 ms'
	# shellcheck disable=SC2016 # of the stub
	begin_guests 'cat "$CASE/ktap" > "$3.ktap"'
	mkdir -p "$out/kselftest/mm"
	part "$out/kselftest/mm/uffd-wp-torture" "operation write\\nanon sync\\nmemfd sync\\nn/a memfd rwp: why"
	printf '%s\nok 1 anon sync\n' "$row" > "$CASE/ktap"
	MINUTES=0 expect_fail "torture: '0' is not a number from 1 to 9999; MINUTES= and GUESTS= want one" scripts/torture
	GUESTS=x expect_fail "torture: 'x' is not a number from 1 to 9999" scripts/torture
	KERNEL=nosuch expect_fail "torture: KERNEL is patched or unpatched, not 'nosuch'" scripts/torture
	scripts/torture > "$CASE/said" 2>&1 || wrong "fails: $(tail -n 1 "$CASE/said")"
	grep -qF '2 kinds of memory and modes, from seed 1' "$CASE/said" || wrong "does not say what it does: $(head -n 1 "$CASE/said")"
	grep -qxF '800 operations in 4 histories, 180 accesses, 60 of them reported' "$CASE/said" || wrong "counts wrong: $(tail -n 1 "$CASE/said")"
	MINUTES=1 scripts/torture > "$CASE/said" 2>&1 || wrong "fails the second time"
	grep -qF 'from seed 10001' "$CASE/said" || wrong "makes the same again: $(head -n 1 "$CASE/said")"
	printf '# seed 7, operation 9: lost: page 1\n#      9: write 1+1\nnot ok 1 anon sync # lost: page 1\n' > "$CASE/ktap"
	if scripts/torture > "$CASE/said" 2>&1; then wrong "passes what failed"; fi
	grep -qF 'seed 7, operation 9: lost: page 1' "$CASE/said" || wrong "does not say what failed: $(tail -n 1 "$CASE/said")"
	printf '%s\n' "$row" > "$CASE/ktap"
	sed -i '$s/$/; exit 1/' scripts/boot
	if scripts/torture > "$CASE/said" 2>&1; then wrong "passes though the guests fail"; fi
}

# make run: what it must not take for passed.
t_run_rows() {
	local good said program
	# shellcheck disable=SC2016 # of the stub
	begin_guests 'cat "$CASE/ktap" > "$3.ktap"'
	part scripts/build
	part "$CASE/bin/make"
	mkdir -p "$out/linux/out/kselftest/mm"
	# Two programs have the first row, and one of them can not have it.
	for program in $OWN; do part "$out/linux/out/kselftest/mm/$program" 2; done
	part "$out/linux/out/kselftest/mm/uffd-wp-pte" "ksm_merge anon sync"
	part "$out/linux/out/kselftest/mm/uffd-wp-faults" "n/a ksm_merge anon sync: why"
	repository "$out/linux"
	expect_fail 'run: say what to run: ROWS=' scripts/run
	ROWS="x" KERNEL=nosuch expect_fail "there is no mutant 'nosuch'; there are: " scripts/run
	export ROWS="ksm_merge anon sync; uffd-wp-ranges protect"
	while IFS=$'\t' read -r good said; do
		printf '# # running ./uffd-wp-pte\n%b\n' "$said" > "$CASE/ktap"
		if [ "$good" = yes ]; then
			scripts/run > "$CASE/said" 2>&1 || wrong "fails: $said"
		elif scripts/run > "$CASE/said" 2>&1; then
			wrong "passes: $said"
		fi
	done <<- 'END'
		yes	# # ok 1 ksm_merge anon sync\n# ok 1 uffd-wp-pte
		no	# # not ok 1 ksm_merge anon sync # lost\n# not ok 1 uffd-wp-pte # exit=1
		no	# # ok 1 ksm_merge anon sync\n# # not ok 2 ksm_merge anon-thp sync\n# not ok 1 uffd-wp-pte # exit=1
		no	# # ok 1 ksm_merge anon sync\n# not ok 1 uffd-wp-pte # exit=139
		no	# # ok 1 ksm_merge anon sync # SKIP why\n# ok 1 uffd-wp-pte
		no	# not ok 1 uffd-wp-pte # exit=2
		no	# # ok 1 ksm_merge an# not ok 1 uffd-wp-pte # exit=137
	END
	grep -qF "./uffd-wp-pte 'ksm_merge anon sync' |" "$CASE/command" || wrong "does not pass on the row: $(head -n 1 "$CASE/command")"
	grep -qF "./uffd-wp-ranges 'protect' |" "$CASE/command" || wrong "does not pass on the rows of a program"
	if grep -q uffd-wp-faults "$CASE/command"; then wrong "runs a program that has no such row"; fi
	part "$out/linux/out/kselftest/mm/uffd-wp-pte" 2
	expect_fail "run: there is no row 'ksm_merge anon sync'; each program lists its rows: " scripts/run
	sed -i '$s/$/; exit 1/' scripts/boot
	printf '# # ok 1 ksm_merge anon sync\n' > "$CASE/ktap"
	if scripts/run > "$CASE/said" 2>&1; then wrong "passes though the guest fails"; fi
}

# --- scripts/test itself, with parts that were made up

# part FILE LINE...: this program of the house says the lines and, if the last
# word is a number, ends with it.
part() {
	local file=$1 status=0
	shift
	printf '#!/bin/sh\n' > "$file"
	while [ $# -gt 0 ]; do
		if [[ $1 =~ ^[0-9]+$ ]]; then status=$1; else printf 'echo "%s"\n' "$1" >> "$file"; fi
		shift
	done
	printf 'exit %s\n' "$status" >> "$file"
	chmod +x "$file"
}

parts_good() {
	local name
	for name in scripts/check scripts/vma-tests tests/mishaps scripts/results scripts/mutants; do
		part "$name" "ok - one" "ok - two"
	done
	part scripts/guests "==> booting"
}

make_test() { "$PWD/scripts/test" > "$CASE/said" 2>&1; }
last_line() { tail -n 1 "$CASE/said"; }

t_test_counts_good() {
	parts_good
	make_test || wrong "fails with good parts: $(last_line)"
	grep -qE '^took: check [0-9]+ s, vma [0-9]+ s, .*, mutants [0-9]+ s$' "$CASE/said" || wrong "does not say how long each part took"
	[[ $(last_line) =~ ^[0-9]+\ passed,\ 0\ failed,\ 0\ skipped$ ]] || wrong "says $(last_line)"
	part tests/mishaps "ok - one" "ok - two # SKIP needs root"
	make_test || wrong "fails with a skip: $(last_line)"
	[[ $(last_line) =~ ^[0-9]+\ passed,\ 0\ failed,\ 1\ skipped$ ]] || wrong "with a skip says $(last_line)"
}

t_test_mishaps_once() {
	parts_good
	# shellcheck disable=SC2016 # of the stub
	sed -i '1a echo >> "$CASE/ran"' tests/mishaps
	make_test
	make_test
	[ "$(wc -l < "$CASE/ran")" = 1 ] || wrong "runs twice what passed"
	[[ $(last_line) =~ ^13\ passed, ]] || wrong "the second time says $(last_line)"
	echo "# changed" >> Makefile
	make_test
	[ "$(wc -l < "$CASE/ran")" = 2 ] || wrong "does not run again after a change"
	sed -i '$s/.*/exit 1/' tests/mishaps
	if make_test; then wrong "passes though tests/mishaps failed"; fi
	if make_test; then wrong "passes the second time though tests/mishaps failed"; fi
	[ "$(wc -l < "$CASE/ran")" = 4 ] || wrong "remembers a failure"
}

t_test_counts_bad() {
	local name short status lines
	for name in scripts/check scripts/vma-tests tests/mishaps scripts/results:verdict scripts/results:figures scripts/mutants; do
		short=$(basename "${name#*:}" -tests)
		while IFS=, read -r status lines; do
			parts_good
			part "${name%:*}" ${lines:+"$lines"} "$status"
			# Of a program with several parts it is this one only.
			[[ $name != *:* ]] || sed -i "1a [ \$1 = $short ] || { echo ok - one; exit; }" "${name%:*}"
			if make_test; then wrong "passes though $name says '$lines' and ends with $status"; fi
			[[ $(last_line) =~ ^[0-9]+\ passed,\ 1\ failed,\ 0\ skipped$ ]] || wrong "$name '$lines' $status: $(last_line)"
			grep -q "^not ok - $short" "$CASE/said" || wrong "does not name $name"
		done <<- 'END'
			1,
			0,
			2,ok - one
			1,not ok - one # why
			0,not ok - one # why
			0,garbage
		END
	done
	parts_good
	part scripts/guests "boot: the guest hangs" 1
	if make_test; then wrong "passes though a guest failed"; fi
	grep -q '^not ok - guests' "$CASE/said"
	parts_good
	rm scripts/vma-tests
	if make_test; then wrong "passes without scripts/vma-tests"; fi
}

# --- make here: what the tests said of the kernel that is running

t_here_table() {
	printf '%s\n' '# running uffd-wp-pte' 'ok 1 ksm_merge memfd sync' 'not ok 2 ksm_merge anon sync # lost: 2 of 2 pages' \
		'not ok 3 ksm_merge anon async # lost: 2 of 2 pages' 'ok 4 numa_hint anon sync # SKIP needs two nodes' \
		'# running uffd-wp-faults' '# read memfd sync: 0.000 1.000 (limit 0.000) faults a page' \
		'not ok 1 read memfd sync # 64 faults for 64 pages, 0 without userfaultfd' > "$CASE/results"
	here/table "$CASE/results" > "$CASE/said" 2>&1 || wrong "fails"
	grep -qxF '| ksm_merge | anon | 2 of 3 | lost: 2 of 2 pages |' "$CASE/said" || wrong "does not say what is lost"
	grep -qxF '| read | memfd | 1.00 | 0.00 |' "$CASE/said" || wrong "does not say what it costs"
	grep -qxF '  1: needs two nodes' "$CASE/said" || wrong "does not say what was not asked"
	if grep -q 'No protection was lost' "$CASE/said"; then wrong "says that nothing was lost"; fi
	sed -i '/ksm_merge anon/d' "$CASE/results"
	here/table "$CASE/results" > "$CASE/said" 2>&1 || wrong "fails if all is well"
	grep -qx 'No protection was lost in the rows above.' "$CASE/said" || wrong "does not say that nothing was lost"
	echo 'Bail out! uffd-wp-pte ended with 139' >> "$CASE/results"
	if here/table "$CASE/results" > "$CASE/said" 2>&1; then wrong "passes though a test died"; fi
	grep -qx 'Bail out! uffd-wp-pte ended with 139' "$CASE/said" || wrong "does not say which test died"
}
