# shellcheck shell=bash
# shellcheck disable=SC2154,SC2164 # as in lib.sh
# make mutants on a kernel in miniature: each verdict, and what is done twice.
# In place of a guest: a row fails if its name has "notices" in it.

# mutant NAME ROWS [LINE...]: adds a line to a file of the tree.
mutant() {
	local name=$1 rows=$2
	shift 2
	{
		printf 'Takes-away: something.\nWhose: nobody\nRows: %s\n' "$rows"
		for line; do echo "$line"; done
		echo ---
		echo "int $(tr -d - <<< "$name");" >> "$out/linux/mm/userfaultfd.c"
		git -C "$out/linux" diff
		git -C "$out/linux" checkout -q .
	} > "mutants/$name.patch"
}

begin_mutants() {
	local program
	expect_ok make kernels
	rm -f mutants/*
	for program in $OWN; do touch "$out/kselftest/mm/$program"; done
	# shellcheck disable=SC2016 # of the stub
	printf '#!/bin/sh\necho "$2" > "$1"\n' > scripts/rootfs
	cat > scripts/boot <<- 'END'
		#!/bin/sh
		echo boot >> "$CASE/boots"
		grep -o "running ./[a-z-]*'; ./[^|]*" "$2" | sed "s/'; .*//; s/^/# # /" | head -n 1 > "$3.ktap"
		if grep -q "notices" "$2"; then
			echo "# # not ok 1 notices anon sync # lost" >> "$3.ktap"
		elif grep -q "uffd-wp-pte |" "$2" && [ -e "$CASE/another" ]; then
			echo "# # not ok 1 another anon sync # lost" >> "$3.ktap"
		else
			echo "# # ok 1 sleeps anon sync" >> "$3.ktap"
		fi
	END
}
# The table comes before the one line of complaint.
good() { scripts/mutants > "$CASE/said" 2>&1 || wrong "fails: $(tail -n 1 "$CASE/said")"; }
bad() {
	if scripts/mutants > "$CASE/said" 2>&1; then wrong "succeeds, but: $1"; fi
	grep -q "$1" "$CASE/said" || wrong "does not say '$1'"
	tail -n 1 "$CASE/said" | grep -q '^mutants: the tests do not notice' || wrong "ends with '$(tail -n 1 "$CASE/said")'"
}
boots() { wc -l < "$CASE/boots"; }

t_mutants_verdicts() {
	begin_mutants
	mutant killed "uffd-wp-pte notices anon sync"
	good
	grep -q 'killed: killed by uffd-wp-pte notices anon sync' "$CASE/said"
	mutant same "uffd-wp-pte sleeps anon sync" "Equivalent: nobody can tell."
	good
	grep -q 'same: survived, and is equivalent' "$CASE/said"

	mutant survivor "uffd-wp-pte sleeps anon sync"
	bad 'survivor: survived'
	touch "$CASE/another"
	ONLY=survivor bad 'survivor: killed by another row: uffd-wp-pte another anon sync'
	rm mutants/survivor.patch
	mutant wrong "uffd-wp-pte notices anon sync" "Equivalent: nobody can tell."
	ONLY=wrong bad 'wrong: killed by uffd-wp-pte notices'
	rm mutants/wrong.patch

	mutant stale "uffd-wp-pte notices anon sync"
	sed -i 's/^ .*/ no such line/' mutants/stale.patch
	ONLY=stale bad 'stale: does not apply: '
	rm mutants/stale.patch
	mutant broken "uffd-wp-pte notices anon sync"
	git -C "$out/linux" rm -q Kbuild
	{ sed '/^---$/q' mutants/broken.patch; git -C "$out/linux" diff --cached; } > "$CASE/patch"
	git -C "$out/linux" reset -q --hard
	mv "$CASE/patch" mutants/broken.patch
	ONLY=broken bad 'broken: does not build: '
}

t_mutants_once() {
	local n
	begin_mutants
	mutant one "uffd-wp-pte notices anon sync" "Test: yes"
	mutant two "uffd-wp-pte notices"
	good
	n=$(boots)
	good
	[ "$(boots)" = "$n" ] || wrong "what has run runs again"
	ONLY=two good
	[ "$(boots)" = $((n + 1)) ] || wrong "ONLY does not run it anew"
	# An interrupted run leaves its mutant in the tree, and no result.
	rm "$out/mutants/one"
	echo 'int left;' >> "$out/mutant/mm/userfaultfd.c"
	good
	[ "$(boots)" = $((n + 2)) ] || wrong "boots $(boots) times, not $((n + 2))"
	! grep -q 'int left' "$out/mutant/mm/userfaultfd.c" || wrong "builds on what was left"
	scripts/mutants --test > "$CASE/said"
	[ "$(grep -c '^ok - ' "$CASE/said")" = 1 ] || wrong "--test does not run the chosen one"
	ONLY=three expect_fail "there is no mutant 'three'; there are: one two" scripts/mutants
}

t_mutants_vacuous() {
	begin_mutants
	sed -i 's/# # ok 1 sleeps anon sync/# # ok 1 # SKIP no such thing/' scripts/boot
	mutant same "uffd-wp-pte sleeps anon sync" "Equivalent: nobody can tell."
	bad 'same: no row ran that is called uffd-wp-pte sleeps anon sync'
}
