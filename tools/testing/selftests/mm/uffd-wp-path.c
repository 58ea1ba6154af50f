// SPDX-License-Identifier: GPL-2.0
/*
 * What happens to page table entries in the uffd-wp tests, see uffd-wp-path.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <linux/mempolicy.h>
#include <linux/mman.h>

#include <lib/test_hmm_uapi.h>

#include "uffd-wp-path.h"
#include "uffd-wp-row.h"

#define NUMAB		"/sys/kernel/debug/sched/numa_balancing/"

#define MERGE_MS	10000
#define HINTS_MS	8000
#define MAX_FOLIOS	1024

long long vm_counter(const char *key)
{
	static char buf[32 << 10];
	static int fd = -1;
	ssize_t n;

	if (fd < 0)
		fd = open("/proc/vmstat", O_RDONLY | O_CLOEXEC);
	n = pread(fd, buf, sizeof(buf) - 1, 0);
	if (n <= 0)
		return -1;
	buf[n] = '\0';
	return field(buf, key);
}

int count_pages(const struct memory *mem, uint64_t flags)
{
	int i, n = 0;

	for (i = 0; i < mem->nr; i++)
		n += !!(page_flags(pfn_of(target(mem, i))) & flags);
	return n;
}

void touch(const char *addr)
{
	(void)__atomic_load_n(addr, __ATOMIC_RELAXED);
}

/*
 * mprotect() and unmapping
 */

void set_prot(const struct memory *mem, int prot)
{
	fail_if(mprotect(mem->addr, mem->map_len, prot), "mprotect");
}

void mprotect_and_back(const struct memory *mem, int prot)
{
	set_prot(mem, prot);
	set_prot(mem, PROT_READ | PROT_WRITE);
}

void zap(const struct memory *mem)
{
	int i;

	fail_if(madvise(mem->addr, mem->len, MADV_DONTNEED), "MADV_DONTNEED");
	for (i = 0; i < mem->nr; i++)
		if (pagemap_entry(target(mem, i)) & PM_PRESENT)
			again("page %d is still mapped", i);
}

/*
 * Migration
 */

void need_two_nodes(void)
{
	if (nr_nodes < 2)
		skip("needs two nodes with memory and a CPU");
}

int away_from(int node)
{
	return node == nodes[0] ? nodes[1] : nodes[0];
}

void must_be_on(const struct memory *mem, int node, const char *who)
{
	int i, got;

	for (i = 0; i < mem->nr; i++) {
		/* a PMD maps all of its pages to the same node */
		if (mem->kind->flags & M_THP && !begins_folio(mem, i))
			continue;
		got = node_of(target(mem, i));
		if (got != node)
			again("%s left page %d on node %d", who, i, got);
	}
}

int try_move_pages(const struct memory *mem, int node)
{
	static void *pages[MAX_FOLIOS];
	static int where[MAX_FOLIOS], status[MAX_FOLIOS];
	int i, nr = 0, there = 0;
	size_t at;

	/* one page is enough for its whole folio */
	for (at = 0; at < mem->len && nr < MAX_FOLIOS; at += mem->folio) {
		pages[nr] = mem->addr + at;
		where[nr++] = node;
	}
	if (syscall(__NR_move_pages, 0, (long)nr, pages, where, status,
		    MPOL_MF_MOVE) < 0)
		skip("move_pages: %s", strerror(errno));
	for (i = 0; i < nr; i++)
		there += status[i] == node;
	return there;
}

void move_pages_to(const struct memory *mem, int node)
{
	int n, nr = (mem->len + mem->folio - 1) / mem->folio;

	for (n = 0; n < 10 && try_move_pages(mem, node) < nr; n++)
		usleep(1000);
	must_be_on(mem, node, "move_pages()");
}

void mbind_to(const struct memory *mem, int node)
{
	unsigned long mask[16] = { 0 };
	const unsigned int bits = 8 * sizeof(long);

	mask[node / bits] = 1UL << node % bits;
	if (syscall(__NR_mbind, mem->addr, mem->map_len, MPOL_BIND, mask,
		    8 * sizeof(mask), MPOL_MF_MOVE | MPOL_MF_STRICT))
		again("mbind: %s", strerror(errno));
	must_be_on(mem, node, "mbind()");
}

/*
 * NUMA hinting faults
 */

void pin_to(pid_t tid, int node)
{
	cpu_set_t set;

	if (!nr_nodes)
		return;
	CPU_ZERO(&set);
	CPU_SET(node_cpu[node], &set);
	sched_setaffinity(tid, sizeof(set), &set);
}

void set_numa_knobs(bool hints)
{
	set_knob(NUMAB_ON, "0");
	if (!hints)
		return;
	set_knob(NUMAB "scan_delay_ms", "1");
	set_knob(NUMAB "scan_period_min_ms", "1");
	set_knob(NUMAB "scan_size_mb", "16");
}

static long long numa_scans(void)
{
	static char buf[16 << 10];

	if (read_text("/proc/self/sched", buf, sizeof(buf)) < 0)
		return -1;
	return field(buf, "mm->numa_scan_seq");
}

void numa_arm(int scans, void (*idle)(int n))
{
	long long start = numa_scans(), hints;
	uint64_t until = now_ms() + (start < 0 ? 300 : 1500);
	int n, quiet = 0;

	if (!write_text(NUMAB_ON, "1"))
		skip("no NUMA balancing: %s", strerror(errno));
	/* The first scan does not pass over new VMAs, later ones may. */
	while (now_ms() < until && (start < 0 || numa_scans() <= start + scans))
		;
	fail_if(!write_text(NUMAB_ON, "0"), "cannot stop NUMA balancing");

	/* Take the hints of all the rest that an access involves. */
	for (n = 0; n < 50 && quiet < 3; n++) {
		hints = vm_counter("numa_hint_faults");
		if (idle)
			idle(n);
		quiet = vm_counter("numa_hint_faults") == hints ? quiet + 1 : 0;
	}
}

void take_hints(const struct memory *mem, void (*idle)(int n))
{
	uint64_t until = now_ms() + HINTS_MS;
	bool hinted[MAX_FOLIOS] = { };
	int i, scans, left = 1;
	long long before;

	for (scans = 0; left && now_ms() < until; scans++) {
		numa_arm(scans, idle);
		for (i = 0, left = 0; i < mem->nr; i++) {
			bool *done = &hinted[folio_index(mem, i)];
			char *addr = target(mem, i);

			if (*done || !begins_folio(mem, i))
				continue;
			before = vm_counter("numa_hint_faults");
			touch(addr);
			*done = vm_counter("numa_hint_faults") > before;
			left += !*done;
		}
	}
	if (left)
		again("%d folios took no hinting fault", left);
	/* What was counted may have been of something else. */
	for (i = 0; i < mem->nr; i++)
		if (begins_folio(mem, i))
			touch(target(mem, i));
}

/*
 * KSM
 */

void set_ksm_knobs(bool zero)
{
	set_knob(KSM "run", "0");
	set_knob(KSM "advisor_mode", "none");
	set_knob(KSM "smart_scan", "0");
	set_knob(KSM "sleep_millisecs", "0");
	set_knob(KSM "pages_to_scan", "5000");
	set_knob(KSM "use_zero_pages", zero ? "1" : "0");
}

void ksm_merge(const struct memory *mem, int enough, bool zero)
{
	const uint64_t merged = zero ? KPF_ZERO_PAGE : KPF_KSM;
	uint64_t until = now_ms() + MERGE_MS;
	int n;

	if (count_pages(mem, merged) >= enough)
		fail("setup: merged before KSM ran");
	if (madvise(mem->addr, mem->map_len, MADV_MERGEABLE))
		skip("no KSM: %s", strerror(errno));
	if (!write_text(KSM "run", "1"))
		skip("cannot start KSM: %s", strerror(errno));
	while ((n = count_pages(mem, merged)) < enough) {
		if (now_ms() > until)
			again("KSM merged %d of %d pages in %d ms", n, mem->nr,
			      MERGE_MS);
		usleep(500);
	}
}

void ksm_pause(void)
{
	write_text(KSM "run", "0");
}

void ksm_unmerge(const struct memory *mem, bool everywhere)
{
	int err;

	if (everywhere)
		err = -ksm_stop();
	else
		err = madvise(mem->addr, mem->map_len, MADV_UNMERGEABLE) ? errno : 0;
	if (err)
		fail("setup: cannot unmerge: %s", strerror(err));
	if (count_pages(mem, KPF_KSM | KPF_ZERO_PAGE))
		fail("setup: the pages are still merged");
}

/*
 * Swap and collapse
 */

bool swap_is_on(void)
{
	struct sysinfo info;

	return !sysinfo(&info) && info.totalswap;
}

int swap_off_and_on(void)
{
	char text[4 << 10], path[128], *line = text;
	int err = 0;

	if (read_text("/proc/swaps", text, sizeof(text)) < 0)
		return errno;
	/* after a line with the titles */
	while (!err && (line = strchr(line, '\n')) &&
	       sscanf(++line, "%127s", path) == 1)
		err = swapoff(path) || swapon(path, 0) ? errno : 0;
	return err;
}

/*
 * What has just been faulted in may wait in another CPU's batch for the LRU, and
 * cannot be paged out.
 */
long swap_out_and_in(char *addr, size_t len)
{
	long long before = vm_counter("pswpin") + vm_counter("pswpout");
	size_t at;

	if (!swap_is_on())
		return -1;
	madvise(addr, len, MADV_PAGEOUT);
	for (at = 0; at < len; at += page_size)
		touch(addr + at);
	return vm_counter("pswpin") + vm_counter("pswpout") - before;
}

long move_to_device(char *addr, size_t len)
{
	struct hmm_dmirror_cmd cmd = { .addr = (uintptr_t)addr, .npages = len / page_size };
	static int fd = -1;
	char *copy = NULL;
	long moved = -1;

	if (fd < 0)
		fd = open("/dev/hmm_dmirror0", O_RDWR | O_CLOEXEC);
	if (fd >= 0)
		copy = malloc(len);	/* of the content, for the caller */
	if (copy) {
		cmd.ptr = (uintptr_t)copy;
		moved = ioctl(fd, HMM_DMIRROR_MIGRATE_TO_DEV, &cmd) ? 0 : cmd.cpages;
	}
	free(copy);
	return moved;
}

int collapse(const struct memory *mem)
{
	size_t at;

	if (pmd_size > mem->len)
		return -1;
	for (at = 0; at + pmd_size <= mem->len; at += pmd_size)
		madvise(mem->addr + at, pmd_size, MADV_COLLAPSE);
	return 0;
}
