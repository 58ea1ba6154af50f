# The front door: every verb is a target, each done by a short program in scripts/.
# BASE=7.3 picks the kernel, KDIR=path puts the series on a tree of your own.

BASE ?= 7.3
KDIR ?=
ONLY ?=
ROW ?=
ROWS ?=
CMD ?=
KERNEL ?=
STATIC ?=
MINUTES ?=
GUESTS ?=
export BASE KDIR ONLY ROW ROWS CMD KERNEL STATIC MINUTES GUESTS
# What each program uses of the caller's make flags is its own business.
unexport MAKEFLAGS
s := scripts

all: kernels ## before and after: build, boot and test both kernels, print the table
	@$s/guests
	@$s/results compare || true # told here, judged by make test
	@$s/results report

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "BASE=$(BASE)       the kernel version; there are: $(patsubst kernels/%.base,%,$(wildcard kernels/*.base))"
	@echo "KDIR=path      a kernel tree of your own, which is only read"
	@echo "KERNEL=name    of make run and make shell: unpatched, patched or a mutant"

tools:
	@$s/need

tree: tools ## build/<base>/linux: the base and the series as a git repository, a commit a patch
	@$s/get
	@$s/tree

kernels: tree ## build both kernels and the kselftests
	@$s/build unpatched
	@$s/build patched
	@$s/kselftest

test: kernels ## everything that must be green
	@$s/test

run: tree ## some rows, or a command, in a guest: ROWS="ksm_merge anon sync" or CMD="..."; KERNEL=...
	@$s/run

here: tree ## asks the kernel that is running, without a guest; STATIC=1 leaves a file for other hosts
	@$s/here

shell: tree ## a shell in a guest
	@$s/run shell

check: kernels ## what needs no boot: shellcheck, checkpatch, every prefix builds
	@$s/check
	@$s/results figures --check

figures: ## writes what was measured into README.md, the documentation and the covers
	@$s/results figures

mutants: kernels ## takes each protection away again: do the tests notice? ONLY="name..."
	@$s/mutants

torture: kernels ## random operations against a model, in several guests; MINUTES=10 GUESTS=2 KERNEL=...
	@$s/torture

bench: kernels ## what it costs, before and after: faults and instructions a page
	@$s/bench

demo: kernels ## QEMU's background snapshots on both kernels, with KSM: are they of one moment?
	@$s/demo

profile: kernels ## where the instructions of a row of it go, function by function; ROW="read_in memfd"
	@$s/profile

refresh: ## take the commits of build/<base>/linux home, into patches/ and the new files
	@$s/refresh

series: tree ## the mails with cover letter and your sign-off, in build/<base>/mails
	@$s/series

clean: ## remove build/; downloads stay in the cache
	@rm -rf build

.PHONY: all help tools tree kernels run here shell test check figures mutants torture bench profile demo refresh series clean
