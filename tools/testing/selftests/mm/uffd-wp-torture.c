// SPDX-License-Identifier: GPL-2.0
/*
 * Random operations on memory that is write-protected through userfaultfd, against
 * a model that knows which of the next accesses have to be reported.
 *
 * A history is a list of operations with their ranges, made from a seed. Each kind of
 * memory runs its histories in each mode. One thread does all of it, and a
 * write that is reported raises SIGBUS (UFFD_FEATURE_SIGBUS) or is asked of
 * PAGEMAP_SCAN, so the same seed does the same again. What goes wrong is printed
 * with the operations before it; -r leaves out those that do not matter.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <linux/mman.h>

#include "uffd-wp-path.h"
#include "uffd-wp-row.h"

#define MAX_PAGES	1040
#define MAX_OPERATIONS	1000000
#define NR_VALUES	6	/* few, so that KSM finds pages that are the same */
#define HISTORY_SECONDS	60

/* What the model knows of a page. */
struct page {
	bool protected;
	bool own;		/* a private copy, not the page of the file */
	uint8_t value;		/* its first byte */
	uint8_t file_value;	/* and that of the file's page */
};

struct operation;

struct step {
	const struct operation *op;
	unsigned int from, nr;	/* pages */
	uint32_t arg;
};

enum {
	SHARED		= BIT(0),	/* only for shared mappings, */
	PRIVATE_ANON	= BIT(1),	/* for what KSM merges, */
	FILLED		= BIT(2),	/* for what UFFDIO_COPY fills, */
	PUNCHED		= BIT(3),	/* for what has a file with holes, */
	ASYNC		= BIT(4),	/* with WP_ASYNC */
	NOT_HUGETLB	= BIT(5),
	WRITTEN		= BIT(6),	/* for files that write(2) writes to */
};

struct operation {
	const char *name;
	int weight;
	unsigned int flags;
	void (*run)(const struct step *step);
};

static struct options {
	uint64_t seed;
	unsigned int operations;
	int seconds, movers;
	bool shrink;
	const char *only;	/* names of operations */
	const char *indices;	/* of the operations of one history */
} options = { .seed = 1, .operations = 400 };

/* Shared with the process of a history */
static struct shared {
	uint64_t operations, accesses, reports;
	unsigned int at;	/* where the history is */
	unsigned int histories;
} *shared;

static struct memory mem;
static struct page *pages;
static char *away;		/* where mremap() takes pages to */
static size_t src_len;
static char *src;		/* what UFFDIO_COPY copies */
static int values_fd, mem_fd;

static char *addr_of(unsigned int i)
{
	return mem.addr + i * mem.page;
}

static bool is_hugetlb(void)
{
	return mem.kind->flags & M_HUGETLB;
}

static bool is_shared(void)
{
	return !(mem.kind->flags & M_PRIVATE);
}

/* Is there a page, or is it swapped out? A marker looks like the latter. */
static bool is_populated(unsigned int i)
{
	return pagemap_entry(addr_of(i)) & (PM_PRESENT | PM_SWAP);
}

/*
 * Accesses. Those that are reported return false.
 */

static sigjmp_buf on_sigbus;
static void *sigbus_addr;

static void sigbus(int sig, siginfo_t *info, void *context)
{
	sigbus_addr = info->si_addr;
	siglongjmp(on_sigbus, 1);
}

static bool store(char *p, uint8_t value)
{
	if (sigsetjmp(on_sigbus, 1))
		return false;
	__atomic_store_n(p, value, __ATOMIC_RELAXED);
	return true;
}

static bool load(const char *p, uint8_t *value)
{
	if (sigsetjmp(on_sigbus, 1))
		return false;
	*value = __atomic_load_n(p, __ATOMIC_RELAXED);
	return true;
}

static void wrote(unsigned int i, uint8_t value)
{
	pages[i].protected = false;
	pages[i].own = true;
	pages[i].value = value;
	if (is_shared())
		pages[i].file_value = value;
}

/* Does the model want this access to be reported? */
static bool must_report(unsigned int i, bool write)
{
	return pages[i].protected && (mem.mode->rwp || (write && !mem.mode->async));
}

/* A write is reported before or after it has made a private copy. */
static void find_copy(unsigned int i)
{
	uint64_t entry = pagemap_entry(addr_of(i));

	if (entry & PM_PRESENT && !(entry & PM_FILE))
		pages[i].own = true;
}

/* Compares, for an access that was reported or not. */
static void judge(unsigned int i, const char *access, bool want, bool got)
{
	shared->accesses++;
	shared->reports += got;
	if (got && !is_shared())
		find_copy(i);
	if (want && !got)
		fail("lost: page %u: a %s was not reported", i, access);
	if (!want && got)
		fail("spurious: page %u: a %s was reported", i, access);
}

static void check_content(unsigned int i)
{
	uint8_t value;

	if (must_report(i, false))
		return;
	if (!load(addr_of(i), &value))
		fail("spurious: page %u: a read was reported", i);
	if (value != pages[i].value)
		fail("content: page %u is %u, not %u", i, value, pages[i].value);
}

static void read_page(unsigned int i)
{
	bool want = must_report(i, false), got;
	uint8_t value = 0;

	got = !load(addr_of(i), &value);
	judge(i, "read", want, got);
	if (!got && value != pages[i].value)
		fail("content: page %u is %u, not %u", i, value, pages[i].value);
}

static void write_page(unsigned int i, uint8_t value)
{
	bool want = must_report(i, true), got;

	got = !store(addr_of(i), value);
	if (got && sigbus_addr != addr_of(i))
		fail("SIGBUS for %p, not for page %u", sigbus_addr, i);
	judge(i, "write", want, got);
	if (!got)
		wrote(i, value);
	else
		check_content(i);
}

/* In WP_ASYNC mode */
static void check_written(unsigned int from, unsigned int nr)
{
	static struct page_region regions[MAX_PAGES];
	static bool written[MAX_PAGES];
	struct pm_scan_arg arg = scan_arg(addr_of(from), nr * mem.page, 0, regions,
					  MAX_PAGES);
	unsigned int i;
	uint64_t at;
	int n;

	n = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
	if (n < 0)
		fail("setup: PAGEMAP_SCAN: %s", strerror(errno));
	memset(written, 0, sizeof(written));
	while (n--)
		for (at = regions[n].start; at < regions[n].end; at += mem.page)
			written[(at - (uintptr_t)mem.addr) / mem.page] = true;
	for (i = from; i < from + nr; i++) {
		shared->accesses++;
		if (pages[i].protected && written[i])
			fail("spurious: page %u is reported as written", i);
		if (!pages[i].protected && !written[i])
			fail("lost: page %u is not reported as written", i);
		shared->reports += written[i];
	}
}

/*
 * Operations: accesses
 */

static void op_write(const struct step *step)
{
	unsigned int i;

	for (i = step->from; i < step->from + step->nr; i++) {
		write_page(i, (step->arg + i) % NR_VALUES);
		if (!pages[i].protected || step->arg & BIT(8))
			continue;
		/* as who was told would do */
		set_protection(&mem, i * mem.page, mem.page, false);
		pages[i].protected = false;
		write_page(i, (step->arg + i) % NR_VALUES);
	}
}

static void op_read(const struct step *step)
{
	unsigned int i;

	for (i = step->from; i < step->from + step->nr; i++)
		read_page(i);
}

static void op_check(const struct step *step)
{
	unsigned int i;

	if (mem.mode->async)
		check_written(step->from, step->nr);
	for (i = step->from; i < step->from + step->nr; i++)
		if (!mem.mode->async)
			write_page(i, pages[i].value);
}

/* By the kernel, which fails where a write would be reported */
static void op_read_into(const struct step *step)
{
	unsigned int i = step->from;
	uint8_t value = step->arg % NR_VALUES;
	bool want = must_report(i, true), got;

	got = pread(values_fd, addr_of(i), 1, value) != 1;
	if (got && errno != EFAULT)
		fail("read() into page %u: %s", i, strerror(errno));
	judge(i, "read()", want, got);
	if (!got)
		wrote(i, value);
	check_content(i);
}

static void op_vm_writev(const struct step *step)
{
	unsigned int i = step->from;
	uint8_t value = step->arg % NR_VALUES;
	struct iovec local = { &value, 1 }, remote = { addr_of(i), 1 };
	bool want = must_report(i, true), got;

	/* Not every kernel has it. */
	if (process_vm_writev(getpid(), NULL, 0, NULL, 0, 0))
		return;
	got = process_vm_writev(getpid(), &local, 1, &remote, 1, 0) != 1;
	if (got && errno != EFAULT)
		fail("process_vm_writev() to page %u: %s", i, strerror(errno));
	judge(i, "process_vm_writev()", want, got);
	if (!got)
		wrote(i, value);
	check_content(i);
}

static void op_proc_mem(const struct step *step)
{
	unsigned int i = step->from;
	uint8_t value = step->arg % NR_VALUES;
	bool want = must_report(i, true), got;

	got = pwrite(mem_fd, &value, 1, (uintptr_t)addr_of(i)) != 1;
	judge(i, "write to /proc/self/mem", want, got);
	if (!got)
		wrote(i, value);
	check_content(i);
}

/*
 * Operations: protection
 */

static void op_protect(const struct step *step)
{
	bool markers = !is_private_anon(mem.kind) || mem.mode->unpop || mem.mode->async;
	static bool takes[MAX_PAGES];
	unsigned int i;

	for (i = step->from; i < step->from + step->nr; i++)
		takes[i] = markers || is_populated(i);
	set_protection(&mem, step->from * mem.page, step->nr * mem.page, true);
	for (i = step->from; i < step->from + step->nr; i++)
		pages[i].protected = takes[i];
}

static void op_resolve(const struct step *step)
{
	unsigned int i;

	set_protection(&mem, step->from * mem.page, step->nr * mem.page, false);
	for (i = step->from; i < step->from + step->nr; i++)
		pages[i].protected = false;
}

/* Gets what is written, and protects it. */
static void op_scan(const struct step *step)
{
	static struct page_region regions[MAX_PAGES];
	struct pm_scan_arg arg = scan_arg(addr_of(step->from), step->nr * mem.page,
					  PM_SCAN_WP_MATCHING, regions, MAX_PAGES);
	unsigned int i, max = step->nr, next = step->from;
	uint64_t at;
	int n, nr;

	if (step->arg & BIT(8)) {
		max = 1 + step->arg % 8;
		arg.max_pages = max * (mem.page / page_size);
	}
	nr = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
	if (nr < 0)
		fail("setup: PAGEMAP_SCAN: %s", strerror(errno));
	for (n = 0; n < nr; n++) {
		for (at = regions[n].start; at < regions[n].end; at += mem.page, next++) {
			i = (at - (uintptr_t)mem.addr) / mem.page;
			for (; next < i; next++)
				if (!pages[next].protected)
					fail("lost: page %u is not returned as written",
					     next);
			if (pages[i].protected)
				fail("spurious: page %u is returned as written", i);
			shared->accesses++;
			shared->reports++;
			pages[i].protected = true;
			if (!max--)
				fail("page %u: more than max_pages are returned", i);
		}
	}
	for (; max && next < step->from + step->nr; next++)
		if (!pages[next].protected)
			fail("lost: page %u is not returned as written", next);
}

static void register_again(unsigned int from, unsigned int nr)
{
	int err = register_range(mem.uffd, addr_of(from), nr * mem.page,
				 mem.mode->rwp ? UFFDIO_REGISTER_MODE_RWP :
						 UFFDIO_REGISTER_MODE_WP);
	unsigned int i;

	if (err)
		fail("UFFDIO_REGISTER: %s", strerror(err));
	for (i = from; i < from + nr; i++)
		pages[i].protected = false;
}

static void op_unregister(const struct step *step)
{
	struct uffdio_range range = {
		.start = (uintptr_t)addr_of(step->from),
		.len = step->nr * mem.page,
	};
	unsigned int i;

	if (ioctl(mem.uffd, UFFDIO_UNREGISTER, &range))
		fail("UFFDIO_UNREGISTER: %s", strerror(errno));
	for (i = step->from; i < step->from + step->nr; i++)
		pages[i].protected = false;
	if (step->arg & BIT(8)) {
		/* Nobody is told of these. */
		for (i = step->from; i < step->from + step->nr; i++) {
			if (!store(addr_of(i), pages[i].value))
				fail("spurious: page %u, not registered: SIGBUS", i);
			wrote(i, pages[i].value);
		}
	}
	register_again(step->from, step->nr);
}

static void op_copy(const struct step *step)
{
	unsigned int i = step->from;
	bool wp = step->arg & BIT(8);
	uint64_t entry = pagemap_entry(addr_of(i));
	struct uffdio_copy copy = {
		.dst = (uintptr_t)addr_of(i),
		.src = (uintptr_t)src,
		.len = mem.page,
		.mode = wp ? UFFDIO_COPY_MODE_WP : 0,
	};

	*src = step->arg % NR_VALUES;
	if (ioctl(mem.uffd, UFFDIO_COPY, &copy)) {
		if (errno != EEXIST)
			fail("UFFDIO_COPY to page %u: %s", i, strerror(errno));
		return;
	}
	/* A marker looks like a swap entry. */
	if (entry & PM_PRESENT || (entry & PM_SWAP && !pages[i].protected))
		fail("UFFDIO_COPY over page %u, which is there", i);
	wrote(i, *src);
	pages[i].protected = wp;
}

/* What makes no sense is refused, and changes nothing. */
static void op_bad_range(const struct step *step)
{
	const uint64_t start = (uintptr_t)addr_of(step->from), page = mem.page;
	const struct uffdio_range bad[] = {
		{ start, 0 },
		{ start + 1, page },
		{ start, page + 1 },
		{ start, page - 1 },
		{ start, -page },
		{ start, -start },
		{ -page, 2 * page },
		{ -page, page },
		{ (uintptr_t)mem.addr + mem.map_len, page },
	};
	const struct uffdio_range *range = &bad[step->arg % ARRAY_SIZE(bad)];
	struct uffdio_range unregister = *range;
	int err;

	switch (step->arg >> 8 & 3) {
	case 0:
		err = protect_range(mem.uffd, (void *)range->start, range->len,
				    step->arg & BIT(10));
		break;
	case 1:
		err = rwprotect_range(mem.uffd, (void *)range->start, range->len,
				      step->arg & BIT(10));
		break;
	case 2:
		err = register_range(mem.uffd, (void *)range->start, range->len,
				     UFFDIO_REGISTER_MODE_WP);
		break;
	default:
		err = ioctl(mem.uffd, UFFDIO_UNREGISTER, &unregister) ? errno : 0;
	}
	if (err != EINVAL && err != ENOENT && err != EBUSY)
		fail("range %#llx+%#llx of call %u: %s", range->start - start, range->len,
		     step->arg >> 8 & 3, err ? strerror(err) : "taken");
}

/*
 * Operations: what happens to the entries
 */

static void advise(const struct step *step, int advice)
{
	madvise(addr_of(step->from), step->nr * mem.page, advice);
}

static void op_cold(const struct step *step)
{
	advise(step, MADV_COLD);
}

static void op_pageout(const struct step *step)
{
	advise(step, MADV_PAGEOUT);
}

static void op_populate(const struct step *step)
{
	advise(step, MADV_POPULATE_READ);
}

static void op_collapse(const struct step *step)
{
	advise(step, MADV_COLLAPSE);
}

static void op_dontneed(const struct step *step)
{
	unsigned int i;

	if (madvise(addr_of(step->from), step->nr * mem.page, MADV_DONTNEED))
		fail("MADV_DONTNEED: %s", strerror(errno));
	for (i = step->from; i < step->from + step->nr; i++) {
		if (is_private_anon(mem.kind))
			pages[i].protected = false;
		pages[i].own = false;
		pages[i].value = pages[i].file_value;
	}
}

/* A page of the file is now @value. With @copies, private copies go, too. */
static void file_changed(unsigned int i, uint8_t value, bool copies)
{
	pages[i].file_value = value;
	if (copies)
		pages[i].own = false;
	if (is_shared() || !pages[i].own)
		pages[i].value = value;
}

static void op_punch(const struct step *step)
{
	unsigned int i;

	if (fallocate(mem.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      step->from * mem.page, step->nr * mem.page))
		fail("setup: fallocate: %s", strerror(errno));
	for (i = step->from; i < step->from + step->nr; i++)
		file_changed(i, 0, is_hugetlb());
}

static void op_remove(const struct step *step)
{
	unsigned int i;

	if (madvise(addr_of(step->from), step->nr * mem.page, MADV_REMOVE))
		fail("setup: MADV_REMOVE: %s", strerror(errno));
	for (i = step->from; i < step->from + step->nr; i++)
		file_changed(i, 0, false);
}

/* Shorter, and as long as before */
static void op_truncate(const struct step *step)
{
	unsigned int i;

	if (ftruncate(mem.fd, step->from * mem.page) || ftruncate(mem.fd, mem.file_len))
		fail("setup: ftruncate: %s", strerror(errno));
	for (i = step->from; i < (unsigned int)mem.nr; i++) {
		file_changed(i, 0, true);
		/* hugetlb drops markers, shmem does not. */
		if (is_hugetlb())
			pages[i].protected = false;
	}
}

/* By write(2), which does not pass the mapping: nobody is told. */
static void op_file_write(const struct step *step)
{
	uint8_t value = step->arg % NR_VALUES;
	unsigned int i;

	for (i = step->from; i < step->from + step->nr; i++) {
		if (pwrite(mem.fd, &value, 1, i * mem.page) != 1)
			fail("setup: pwrite: %s", strerror(errno));
		file_changed(i, value, false);
	}
}

static void op_mprotect(const struct step *step)
{
	size_t len = step->nr * mem.page;
	char *addr = addr_of(step->from);

	if (mprotect(addr, len, step->arg & BIT(8) ? PROT_READ : PROT_NONE) ||
	    mprotect(addr, len, PROT_READ | PROT_WRITE))
		fail("mprotect: %s", strerror(errno));
}

static void op_migrate(const struct step *step)
{
	if (nr_nodes > 1)
		try_move_pages(&mem, nodes[step->arg & 1]);
}

static void op_lock(const struct step *step)
{
	char *addr = addr_of(step->from);

	mlock2(addr, step->nr * mem.page, MLOCK_ONFAULT);
	munlock(addr, step->nr * mem.page);
}

static void op_device(const struct step *step)
{
	move_to_device(addr_of(step->from), step->nr * mem.page);
}

static void op_ksm(const struct step *step)
{
	advise(step, MADV_MERGEABLE);
	write_text(KSM "run", "1");
	usleep(1000 * (step->arg % 32));
	write_text(KSM "run", "0");
}

static void op_unmerge(const struct step *step)
{
	advise(step, MADV_UNMERGEABLE);
}

static void op_clear_refs(const struct step *step)
{
	write_text("/proc/self/clear_refs", step->arg & BIT(8) ? "4" : "1");
}

static void op_split(const struct step *step)
{
	char text[96];

	snprintf(text, sizeof(text), "%d,%#lx,%#lx,0", getpid(),
		 (unsigned long)addr_of(step->from),
		 (unsigned long)addr_of(step->from) + step->nr * mem.page);
	write_text("/sys/kernel/debug/split_huge_pages", text);
}

static void op_swapoff(const struct step *step)
{
	swap_off_and_on();
}

static void op_fork(const struct step *step)
{
	unsigned int i, end = step->from + step->nr;
	/* Copies of huge pages may be more than there are. */
	bool writes = is_shared() || !is_hugetlb();
	int status;
	pid_t pid;

	pid = fork();
	if (pid < 0)
		fail("setup: fork: %s", strerror(errno));
	if (!pid) {
		uint8_t value;

		for (i = step->from; i < end; i++) {
			if (!load(addr_of(i), &value))
				fail("spurious: page %u: SIGBUS for the child", i);
			if (value != pages[i].value)
				fail("content: page %u is %u in the child, not %u", i,
				     value, pages[i].value);
			if (writes && !store(addr_of(i), (value + 1) % NR_VALUES))
				fail("spurious: page %u: SIGBUS for the child", i);
		}
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid || status) {
		if (report->outcome != FAIL)
			fail("crash: the child ended with status %#x", status);
		_exit(1);
	}
	for (i = step->from; is_shared() && i < end; i++) {
		pages[i].value = (pages[i].value + 1) % NR_VALUES;
		pages[i].file_value = pages[i].value;
	}
}

/* Away and back, which ends the registration both times */
static void op_mremap(const struct step *step)
{
	size_t len = step->nr * mem.page;
	char *addr = addr_of(step->from);

	if (mremap(addr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, away) == MAP_FAILED) {
		/* Several VMAs, perhaps. All is as it was then. */
		if (errno != EFAULT && errno != EINVAL)
			fail("mremap: %s", strerror(errno));
		return;
	}
	if (step->arg & BIT(8)) {
		register_range(mem.uffd, away, len, mem.mode->rwp ?
			       UFFDIO_REGISTER_MODE_RWP : UFFDIO_REGISTER_MODE_WP);
		if (!mem.mode->rwp)
			protect_range(mem.uffd, away, len, true);
	}
	if (mremap(away, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, addr) == MAP_FAILED)
		fail("mremap back: %s", strerror(errno));
	if (mmap(away, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
		 MAP_FIXED, -1, 0) == MAP_FAILED)
		fail("setup: mmap: %s", strerror(errno));
	register_again(step->from, step->nr);
}

static void op_duplicate(const struct step *step)
{
	char *p = mremap(addr_of(step->from), 0, step->nr * mem.page, MREMAP_MAYMOVE);

	if (p != MAP_FAILED)
		munmap(p, step->nr * mem.page);
}

static const struct operation operations[] = {
	{ "write", 30, 0, op_write },
	{ "read", 15, 0, op_read },
	{ "check", 10, 0, op_check },
	{ "read_into", 4, 0, op_read_into },
	{ "vm_writev", 3, 0, op_vm_writev },
	{ "proc_mem", 4, 0, op_proc_mem },
	{ "protect", 30, 0, op_protect },
	{ "resolve", 8, 0, op_resolve },
	{ "scan", 20, ASYNC, op_scan },
	{ "unregister", 3, 0, op_unregister },
	{ "copy", 6, FILLED, op_copy },
	{ "bad_range", 3, 0, op_bad_range },
	{ "cold", 3, NOT_HUGETLB, op_cold },
	{ "pageout", 6, NOT_HUGETLB, op_pageout },
	{ "populate", 4, 0, op_populate },
	{ "collapse", 3, NOT_HUGETLB, op_collapse },
	{ "dontneed", 6, 0, op_dontneed },
	{ "punch", 4, PUNCHED, op_punch },
	{ "remove", 2, SHARED | FILLED, op_remove },
	{ "truncate", 1, PUNCHED, op_truncate },
	{ "file_write", 4, WRITTEN, op_file_write },
	{ "mprotect", 8, 0, op_mprotect },
	{ "migrate", 4, 0, op_migrate },
	/* mlock() populates private hugetlb by writing to it. */
	{ "lock", 3, NOT_HUGETLB, op_lock },
	{ "ksm", 4, PRIVATE_ANON, op_ksm },
	{ "unmerge", 2, PRIVATE_ANON, op_unmerge },
	{ "clear_refs", 3, 0, op_clear_refs },
	{ "split", 3, NOT_HUGETLB, op_split },
	{ "swapoff", 1, NOT_HUGETLB, op_swapoff },
	{ "fork", 2, 0, op_fork },
	{ "mremap", 2, 0, op_mremap },
	{ "duplicate", 2, SHARED, op_duplicate },

	/* Only if asked for: 7.3.4 oopses in KSM, and warns where a page is read. */
	{ "device", 0, NOT_HUGETLB, op_device },
};

static bool in_list(const char *list, const char *name)
{
	size_t len = strlen(name);
	const char *p;

	for (p = list; (p = strstr(p, name)); p += len)
		if ((p == list || p[-1] == ',') && (!p[len] || p[len] == ','))
			return true;
	return false;
}

static int weight_of(const struct operation *op)
{
	return op->weight ?: 1;
}

static bool applies(const struct operation *op, const struct kind *kind,
		    const struct mode *mode)
{
	unsigned int flags = op->flags;

	if (options.only ? !in_list(options.only, op->name) : !op->weight)
		return false;
	if (flags & SHARED && kind->flags & M_PRIVATE)
		return false;
	/* Only a page of a file that nobody knows is left out. */
	if (flags & PRIVATE_ANON && (!(kind->flags & M_PRIVATE) ||
				     kind->flags & M_HUGETLB))
		return false;
	if (flags & FILLED && (kind->flags & M_DISK || mode->rwp))
		return false;
	if (flags & PUNCHED && (!(kind->flags & M_FD) || kind->flags & M_DISK))
		return false;
	if (flags & WRITTEN && (!(kind->flags & M_FD) || kind->flags & M_HUGETLB))
		return false;
	if (flags & ASYNC && !mode->async)
		return false;
	if (flags & NOT_HUGETLB && kind->flags & M_HUGETLB)
		return false;
	return true;
}

/*
 * Histories
 */

/* splitmix64: what is at @n of the sequence of a seed needs nothing before it. */
static uint64_t random_at(uint64_t seed, uint64_t n)
{
	uint64_t z = seed * 0x9e3779b97f4a7c15 + n * 0xbf58476d1ce4e5b9;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

/* Small ranges mostly, edges often */
static void choose_range(struct step *step, uint64_t r, unsigned int nr_pages)
{
	unsigned int pmd = pmd_size / page_size;

	step->from = r % nr_pages;
	if (r >> 32 & 1 && nr_pages > pmd)
		step->from = pmd - (r >> 33 & 3);
	else if (!(r >> 32 & 6))
		step->from = 0;
	r >>= 40;
	switch (r & 7) {
	case 0:
		step->nr = nr_pages;
		break;
	case 1:
		step->nr = pmd;
		break;
	case 2:
	case 3:
		step->nr = 1;
		break;
	default:
		step->nr = 1 + (r >> 3) % 32;
	}
	if (step->nr > nr_pages - step->from)
		step->nr = nr_pages - step->from;
}

static void make_step(struct step *step, uint64_t seed, unsigned int n,
		      const struct row_id *id, unsigned int nr_pages)
{
	const struct kind *kind = kind_named(id->word[0]);
	const struct mode *mode = mode_named(id->word[1]);
	int sum = 0, pick;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(operations); i++)
		if (applies(&operations[i], kind, mode))
			sum += weight_of(&operations[i]);
	if (!sum)
		skip("none of the operations of -o exists here");
	pick = random_at(seed, 3 * n) % sum;
	for (i = 0; ; i++) {
		if (!applies(&operations[i], kind, mode))
			continue;
		pick -= weight_of(&operations[i]);
		if (pick < 0)
			break;
	}
	step->op = &operations[i];
	choose_range(step, random_at(seed, 3 * n + 1), nr_pages);
	step->arg = random_at(seed, 3 * n + 2);
}

static void *keep_moving(void *unused)
{
	unsigned int n;

	for (n = 0; ; n++)
		try_move_pages(&mem, nodes[n & 1]);
	return NULL;
}

static void begin_history(const struct row_id *id)
{
	struct sigaction action = {
		.sa_sigaction = sigbus,
		.sa_flags = SA_SIGINFO | SA_NODEFER,
	};
	uint8_t values[NR_VALUES];
	uint64_t features = 0;
	unsigned int i;
	int t;

	mem = (struct memory) {
		.kind = kind_named(id->word[0]),
		.mode = mode_named(id->word[1]),
	};
	if (is_hugetlb())
		mem.len = 4 * huge_size;
	else if (mem.kind->flags & M_THP)
		mem.len = 2 * pmd_size;
	else if (mem.kind->flags & M_MTHP)
		mem.len = 64 * page_size;
	else
		mem.len = pmd_size + 8 * page_size;
	map_memory(&mem, PROT_READ | PROT_WRITE);
	if ((size_t)mem.nr > MAX_PAGES)
		skip("%d pages are more than %d", mem.nr, MAX_PAGES);
	pages = calloc(mem.nr, sizeof(*pages));
	if (mem.kind->flags & M_DISK) {
		fill_file(&mem);
		for (i = 0; i < (unsigned int)mem.nr; i++)
			pages[i] = (struct page) { .value = 'x', .file_value = 'x' };
	}
	if (!mem.mode->async)
		features |= UFFD_FEATURE_SIGBUS;
	arm(&mem, features);
	look_at(getpid());

	away = reserve(mem.map_len);
	src_len = mem.page;
	src = mmap(NULL, src_len, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	for (i = 0; i < NR_VALUES; i++)
		values[i] = i;
	values_fd = memfd_create("values", MFD_CLOEXEC);
	mem_fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	if (!pages || src == MAP_FAILED || mem_fd < 0 || values_fd < 0 ||
	    write(values_fd, values, NR_VALUES) != NR_VALUES)
		fail("setup: %s", strerror(errno));
	sigaction(SIGBUS, &action, NULL);
	for (t = 0; t < options.movers && nr_nodes > 1; t++)
		start_thread(keep_moving, NULL);
}

struct history {
	const struct row_id *id;
	const struct step *steps;
	const bool *skipped;
	unsigned int nr;
};

static void play(const struct history *history)
{
	struct step all;
	unsigned int i;
	char text[64];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(HISTORY_SECONDS);
	begin_history(history->id);
	for (i = 0; i < history->nr; i++) {
		const struct step *s = &history->steps[i];

		if (history->skipped[i])
			continue;
		shared->at = i;
		snprintf(text, sizeof(text), "%u: %s %u+%u", i, s->op->name, s->from,
			 s->nr);
		step(text);
		s->op->run(s);
		shared->operations++;
	}
	shared->at = i;
	step("check of all");
	all = (struct step) { .from = 0, .nr = mem.nr };
	op_check(&all);
	report->outcome = PASS;
	_exit(0);
}

/* Returns whether it passed; else report says what went wrong. */
static bool passes(const struct history *history)
{
	int status;
	pid_t pid;

	memset(report, 0, sizeof(*report));
	fflush(stdout);
	pid = fork();
	if (!pid)
		play(history);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		fail("setup: fork: %s", strerror(errno));
	if (report->outcome == DIED) {
		report->outcome = FAIL;
		snprintf(report->text, sizeof(report->text), "%s: signal %d in step '%s'",
			 WTERMSIG(status) == SIGALRM ? "hang" : "crash",
			 WTERMSIG(status), report->step);
	}
	return report->outcome == PASS;
}

/* Leaves out what can be left out, in chunks that become smaller. */
static void shrink(struct history *history, bool *skipped)
{
	unsigned int chunk, from, i, left;
	bool *old = malloc(history->nr);
	struct report last = *report;

	if (!old)
		return;
	for (chunk = history->nr / 2; chunk; chunk /= 2) {
		for (from = 0; from < history->nr; from += chunk) {
			memcpy(old, skipped, history->nr);
			for (left = 0, i = from; i < from + chunk && i < history->nr; i++) {
				left += !skipped[i];
				skipped[i] = true;
			}
			if (!left)
				continue;
			if (passes(history) || report->outcome != FAIL)
				memcpy(skipped, old, history->nr);
			else
				last = *report;
		}
	}
	*report = last;
	free(old);
}

static void print_history(const struct history *history)
{
	unsigned int i, first = 0, nr = 0;

	/* the last ones if there are many */
	for (i = history->nr; i-- && nr < 40;) {
		nr += !history->skipped[i];
		first = i;
	}
	for (i = first; i < history->nr; i++) {
		const struct step *s = &history->steps[i];

		if (!history->skipped[i])
			ksft_print_msg("%6u: %-11s %4u+%-4u %#x\n", i, s->op->name, s->from,
				       s->nr, s->arg);
	}
}

static void print_replay(const struct history *history, uint64_t seed)
{
	const char *comma = " -x ";
	unsigned int i;

	ksft_print_msg("again: uffd-wp-torture -s %llu -n %u -k %s -m %s",
		       (unsigned long long)seed, options.operations,
		       history->id->word[0], history->id->word[1]);
	if (options.only)
		printf(" -o %s", options.only);
	for (i = 0; options.shrink && i < history->nr; i++) {
		if (history->skipped[i])
			continue;
		printf("%s%u", comma, i);
		comma = ",";
	}
	printf("\n");
}

static unsigned int pages_of(const struct kind *kind)
{
	if (kind->flags & M_HUGETLB)
		return 4;
	if (kind->flags & M_THP)
		return 2 * pmd_size / page_size;
	return kind->flags & M_MTHP ? 64 : pmd_size / page_size + 8;
}

static void run_history(const struct row_id *id, uint64_t seed)
{
	struct step *steps = calloc(options.operations, sizeof(*steps));
	bool *skipped = calloc(options.operations, sizeof(*skipped));
	struct history history = {
		.id = id, .steps = steps, .skipped = skipped, .nr = options.operations,
	};
	unsigned int i;
	char index[16];

	if (!steps || !skipped)
		fail("setup: no memory for %u operations", options.operations);
	for (i = 0; i < options.operations; i++) {
		make_step(&steps[i], seed, i, id, pages_of(kind_named(id->word[0])));
		snprintf(index, sizeof(index), "%u", i);
		skipped[i] = options.indices && !in_list(options.indices, index);
	}
	shared->histories++;
	if (passes(&history)) {
		free(steps);
		free(skipped);
		return;
	}
	if (report->outcome == FAIL) {
		if (shared->at < history.nr)
			history.nr = shared->at + 1;
		ksft_print_msg("seed %llu, operation %u: %s\n", (unsigned long long)seed,
			       shared->at, report->text);
		if (options.shrink)
			shrink(&history, skipped);
		print_history(&history);
		print_replay(&history, seed);
		fflush(stdout);
	}
	_exit(1);
}

static void run(const struct row_id *id)
{
	uint64_t start = now_ms(), seed = options.seed;

	memset(shared, 0, sizeof(*shared));
	do
		run_history(id, seed++);
	while (now_ms() - start < options.seconds * 1000ULL);
	ksft_print_msg("%s: %llu operations in %u histories from seed %llu, ", id->name,
		       (unsigned long long)shared->operations, shared->histories,
		       (unsigned long long)options.seed);
	printf("%llu accesses, %llu reported, %llu ms\n",
	       (unsigned long long)shared->accesses,
	       (unsigned long long)shared->reports,
	       (unsigned long long)(now_ms() - start));
	fflush(stdout);
}

static const char *const kinds[] = {
	"anon", "shared-anon", "memfd", "memfd-private", "tmpfs", "anon-thp", "shmem-thp",
	"anon-mthp", "shmem-mthp", "hugetlb-shared", "hugetlb-private", "hugetlb-anon",
	"file", "file-private",
};

static const char *const modes[] = { "sync", "unpop", "async", "rwp" };

static const char *impossible(const struct row_id *id)
{
	const struct kind *kind = kind_named(id->word[0]);
	const struct mode *mode = mode_named(id->word[1]);

	if (kind->flags & M_DISK && !mode->async)
		return "files of a disk can be registered with WP_ASYNC only";
	if (mode->unpop && !is_private_anon(kind))
		return "only private anonymous memory has no markers without it";
	if (mode->rwp && !is_private_anon(kind))
		return "unmapping files drops RWP protection";
	return NULL;
}

static void set_knobs(const struct row_id *id)
{
	set_memory_knobs(kind_named(id->word[0]));
	set_ksm_knobs(false);
}

static void setup(void)
{
	find_machine();
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		ksft_exit_fail_msg("mmap: %s\n", strerror(errno));
}

static struct test torture = {
	.tables = { TABLE(kinds), TABLE(modes) },
	.impossible = impossible,
	.setup = setup,
	.set_knobs = set_knobs,
	.run = run,
};

static const char help[] =
	"usage: %s [-lrvh] [-s SEED] [-n OPERATIONS] [-t SECONDS] [-k KIND] [-m MODE]\n"
	"          [-o OPERATION,...] [-x INDEX,...] [-j THREADS]\n"
	"  Random operations on each kind of memory in each mode, in histories.\n"
	"  -s  of the first history; the next ones count from there. 0: the time\n"
	"  -n  operations of a history\n"
	"  -t  how long each kind in each mode is to be tortured; else one history\n"
	"  -k, -m, -o  only these\n"
	"  -x  only these operations of the history, by their index\n"
	"  -r  reduce a history that fails to what is needed for that\n"
	"  -j  threads that migrate the memory all the time: then a seed is not enough to\n"
	"      do the same again\n"
	"  -l  list kinds with modes, and operations\n";

static long parse(const char *text, long max)
{
	char *end;
	long n;

	errno = 0;
	n = strtol(text, &end, 0);
	if (errno || *end || end == text || n < 0 || n > max) {
		fprintf(stderr, "uffd-wp-torture: '%s' is no number from 0 to %ld\n",
			text, max);
		exit(2);
	}
	return n;
}

/* The names of -o, one at a time */
static bool all_known(const char *list)
{
	char copy[512], *one, *next = copy;
	unsigned int i;

	snprintf(copy, sizeof(copy), "%s", list);
	while ((one = strsep(&next, ","))) {
		for (i = 0; i < ARRAY_SIZE(operations); i++)
			if (!strcmp(operations[i].name, one))
				break;
		if (i == ARRAY_SIZE(operations)) {
			fprintf(stderr, "uffd-wp-torture: there is no operation '%s', see -l\n",
				one);
			return false;
		}
	}
	return true;
}

/* By their whole names: a part of one would choose others, too. */
static int select_rows(char **args, const char *kind, const char *mode)
{
	unsigned int k, m;
	int nr = 0;

	if (!kind && !mode)
		return 0;
	for (k = 0; k < ARRAY_SIZE(kinds); k++) {
		for (m = 0; m < ARRAY_SIZE(modes); m++) {
			const struct row_id id = { .word = { kinds[k], modes[m] } };

			if ((kind && strcmp(kind, kinds[k])) ||
			    (mode && strcmp(mode, modes[m])) ||
			    (!(kind && mode) && impossible(&id)))
				continue;
			if (asprintf(&args[nr], "%s %s", kinds[k], modes[m]) > 0)
				nr++;
		}
	}
	if (!nr) {
		fprintf(stderr, "uffd-wp-torture: there is no %s %s, see -l\n",
			kind ?: "kind", mode ?: "of memory");
		exit(2);
	}
	return nr;
}

int main(int argc, char **argv)
{
	const char *kind = NULL, *mode = NULL;
	char *args[4 + ARRAY_SIZE(kinds) * ARRAY_SIZE(modes)] = { argv[0] };
	unsigned int i;
	bool list = false;
	int opt, nr = 1;

	while ((opt = getopt(argc, argv, "s:n:t:k:m:o:x:j:rlvh")) != -1) {
		switch (opt) {
		case 's':
			options.seed = parse(optarg, LONG_MAX) ?: now_ms();
			break;
		case 'n':
			options.operations = parse(optarg, MAX_OPERATIONS);
			break;
		case 't':
			options.seconds = parse(optarg, INT_MAX / 2000);
			break;
		case 'k':
			kind = optarg;
			break;
		case 'm':
			mode = optarg;
			break;
		case 'o':
			options.only = optarg;
			if (!all_known(optarg))
				return 2;
			break;
		case 'x':
			options.indices = optarg;
			break;
		case 'j':
			options.movers = parse(optarg, 64);
			break;
		case 'r':
			options.shrink = true;
			break;
		case 'v':
			args[nr++] = "-v";
			break;
		case 'l':
			list = true;
			break;
		default:
			fprintf(opt == 'h' ? stdout : stderr, help, argv[0]);
			return opt == 'h' ? 0 : 2;
		}
	}
	if (list)
		for (i = 0; i < ARRAY_SIZE(operations); i++)
			printf("operation %s\n", operations[i].name);
	nr += select_rows(args + nr, kind, mode);
	if (list)
		args[nr++] = "-l";
	/* shrinking plays it a few hundred times */
	torture.seconds = options.seconds + HISTORY_SECONDS * (options.shrink ? 20 : 2);
	optind = 1;
	return run_test(&torture, nr, args);
}
