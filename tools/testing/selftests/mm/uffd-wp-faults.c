// SPDX-License-Identifier: GPL-2.0
/*
 * What userfaultfd write protection costs where nobody asked for it: a page
 * that is not protected must not take more faults in a mapping that is
 * registered than in one that is not. A page that is protected takes the one
 * by which its write is noticed.
 *
 * A test is a row: what happens before the writes (scenario) x kind of memory
 * x mode. Each row runs twice in a process of its own, first without and then
 * with userfaultfd: map, register, populate, protect or not, let it happen,
 * then write to each page, twice, and count the faults of the thread or process
 * that writes (or reads, where the name says so). It passes if the second number
 * is not above the first one; or not above one a page, if each write had to be
 * noticed.
 *
 * Somebody else may want to see a first write: a filesystem, or soft-dirty
 * tracking. Their rows fail as well if there are fewer faults.
 *
 * A failure that is not about the number of faults begins with one of
 *   lost:      a write to a protected page was not noticed
 *   spurious:  an event for a page that is not protected
 *   hang:      something did not finish within its time
 *
 * A row that cannot prove that what its name says has happened is a SKIP.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <linux/magic.h>

#include "../kselftest.h"
#include "uffd-wp-util.h"

#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP	BIT_ULL(1)
#endif

#ifndef UFFD_FEATURE_RWP_ASYNC
#define UFFD_FEATURE_RWP_ASYNC	BIT(18)
#endif

#define ROW_SECONDS	20
#define EVENT_MS	5000
#define SMALL_PAGES	64
#define HUGE_PAGES	4
#define PM_SOFT_DIRTY	BIT_ULL(55)

#define FAIL_PAGE	"/sys/kernel/debug/fail_page_alloc/"
#define MTHP_SIZE	(64UL << 10)
#define MTHP		THP "hugepages-64kB"

/* Kinds of memory */
enum {
	M_PRIVATE	= 1 << 0,
	M_MEMFD		= 1 << 1,
	M_TMPFS		= 1 << 2,
	M_FS		= 1 << 3,	/* wants to see the first write */
	M_THP		= 1 << 4,
	M_MTHP		= 1 << 5,	/* large folios, mapped by PTEs */
	M_HUGETLB	= 1 << 6,
	M_LARGE		= M_THP | M_MTHP,
};

struct memory {
	const char *name;
	unsigned int flags;
};

struct mode {
	const char *name;
	bool async;
};

enum {
	S_SYNC		= 1 << 0,	/* only in synchronous mode */
	S_ASYNC		= 1 << 1,	/* only in WP_ASYNC mode */
	S_DIRTY		= 1 << 2,	/* populated by writing, else by reading */
	S_UNTOUCHED	= 1 << 3,	/* not populated */
	S_LATE		= 1 << 4,	/* registered after it was populated */
	S_PROTECT	= 1 << 5,	/* protected before it happens */
	S_NOTICED	= 1 << 6,	/* each write has to be noticed, once */
	S_MISSING	= 1 << 7,	/* because there is no page to write to */
	S_NODES		= 1 << 8,	/* needs a second node */
	S_HINTS		= 1 << 9,
	S_CHILD		= 1 << 10,	/* the child writes */
	S_SOFT_DIRTY	= 1 << 11,	/* tracks writes itself */
	S_MAY_FAULT	= 1 << 12,	/* once a page, unnoticed */
	S_COPIES	= 1 << 13,	/* each write has to copy a page */
	S_READS		= 1 << 14,	/* it is reads that are counted */
	S_NOMEM		= 1 << 15,	/* allocations can be made to fail */
	S_TWICE		= 1 << 16,	/* each write takes two faults */
	S_FREE		= 1 << 17,	/* none, not even without userfaultfd */
	S_KEPT		= S_DIRTY | S_PROTECT | S_NOTICED,
};

struct row;

struct scenario {
	const char *name;
	unsigned int flags;
	uint64_t features;	/* of userfaultfd, in addition */
	uint64_t more;		/* what else it is registered for, later */
	void (*run)(struct row *row);
	int arg;
};

struct row {
	const struct scenario *scenario;
	const struct memory *mem;
	const struct mode *mode;
	bool registered;	/* second run */

	char *addr;
	size_t len;
	size_t stride;		/* from one write to the next */
	size_t folio;
	int nr;			/* writes */
	int fd, uffd;
	int go, done;		/* tell the child to write, and who waits for it */
	pid_t child;
	struct uffd_msg event;	/* of fork() or mremap() */
	bool notice;		/* the writes have to be noticed */
	long noticed;
};

enum outcome { DIED, DONE, FAIL, SKIP };

static struct report {
	enum outcome outcome;
	char text[160];
	long faults[2];
	long noticed;
	int nr;
} *report;

static uint64_t uffd_features;
static char *scratch;

static __noreturn __printf(2, 3) void end_row(enum outcome outcome,
					      const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(report->text, sizeof(report->text), fmt, args);
	va_end(args);
	report->outcome = outcome;
	_exit(0);
}

#define fail(...)	end_row(FAIL, __VA_ARGS__)
#define skip(...)	end_row(SKIP, __VA_ARGS__)

/*
 * Counting
 */

static void put(char *addr, char value)
{
	__atomic_store_n(addr, value, __ATOMIC_RELAXED);
}

static void get(const char *addr)
{
	(void)__atomic_load_n(addr, __ATOMIC_RELAXED);
}

static long faults_of_thread(void)
{
	struct rusage usage;

	/* a fault that was retried, after an event, is counted as major */
	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_minflt + usage.ru_majflt;
}

/* What glibc has registered for rseq: the kernel writes to it at any time. */
extern const ptrdiff_t __rseq_offset;
#pragma weak __rseq_offset

static void touch_rseq(void)
{
	if (&__rseq_offset)
		__atomic_fetch_add((char *)__builtin_thread_pointer() +
				   __rseq_offset, 0, __ATOMIC_SEQ_CST);
}

/* What the counting itself touches must not be counted: practise first. */
static long count_once(struct row *row)
{
	long before, faults = 0;
	int practice, nr, i;
	size_t stride;
	char *addr;

	for (practice = 1; practice >= 0; practice--) {
		addr = practice ? scratch : row->addr;
		stride = practice ? 8 : row->stride;
		nr = practice ? 2 : row->nr;
		touch_rseq();
		before = faults_of_thread();
		for (i = 0; i < nr; i++) {
			if (row->scenario->flags & S_READS)
				get(addr + i * stride);
			else
				put(addr + i * stride, i + 1);
		}
		faults = faults_of_thread() - before;
	}
	return faults;
}

/* There is nothing to be noticed the second time. */
static void count_all(struct row *row)
{
	uint64_t one = 1;

	report->faults[row->registered] = count_once(row) + count_once(row);
	if (write(row->done, &one, 8) != 8)
		fail("nobody waits for the writes");
}

/*
 * Memory
 */

static bool is_anon(const struct memory *mem)
{
	return mem->flags & M_PRIVATE && !(mem->flags & M_HUGETLB);
}

/* From here on, pagemap is that of this process. */
static void look_at(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	close(pagemap_fd);
	pagemap_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (pagemap_fd < 0)
		fail("no %s: %s", path, strerror(errno));
}

static int open_file(struct row *row)
{
	static const char * const tmpfs[] = { "/dev/shm", "/tmp", "/run" };
	struct statfs fs;
	unsigned int i;
	int fd = -1;

	if (row->mem->flags & M_MEMFD)
		fd = memfd_create("uffd-wp-faults",
				  row->mem->flags & M_HUGETLB ? MFD_HUGETLB : 0);
	for (i = 0; row->mem->flags & M_TMPFS && i < ARRAY_SIZE(tmpfs); i++) {
		if (statfs(tmpfs[i], &fs) || fs.f_type != TMPFS_MAGIC)
			continue;
		fd = open(tmpfs[i], O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
		if (fd >= 0)
			break;
	}
	if (row->mem->flags & M_FS) {
		if (statfs(".", &fs) || fs.f_type == TMPFS_MAGIC ||
		    fs.f_type == RAMFS_MAGIC)
			skip("the current directory is not on a disk filesystem");
		fd = open(".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	}
	if (fd < 0)
		skip("cannot create a file: %s", strerror(errno));
	if (ftruncate(fd, row->len))
		fail("ftruncate: %s", strerror(errno));
	return fd;
}

static char *map_at(struct row *row, char *at)
{
	int flags = row->mem->flags & M_PRIVATE ? MAP_PRIVATE : MAP_SHARED;
	char *addr;

	if (row->fd < 0)
		flags |= MAP_ANONYMOUS;
	addr = mmap(at, row->len, PROT_READ | PROT_WRITE, flags | MAP_FIXED,
		    row->fd, 0);
	if (addr == MAP_FAILED)
		skip("mmap: %s", strerror(errno));
	if (!(row->mem->flags & M_HUGETLB))
		madvise(addr, row->len, row->mem->flags & M_LARGE ?
					MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	return addr;
}

static char *reserve(size_t len, size_t align)
{
	char *addr = mmap(NULL, len + 3 * align, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (addr == MAP_FAILED)
		fail("no room for %zu bytes", len);
	return (char *)(((uintptr_t)addr + 2 * align - 1) & ~(align - 1));
}

/* Older kernels map single pages where it is registered: have them there before. */
static void make_large(struct row *row)
{
	char *view = map_at(row, reserve(row->len, pmd_size));
	size_t i;

	for (i = 0; i < row->len; i += page_size)
		view[i] = 1;
	munmap(view, row->len);
}

/* A file that has been written out: its pages are clean. */
static void fill_file(struct row *row)
{
	char page[64] = "x";
	size_t at;

	for (at = 0; at < row->len; at += page_size)
		if (pwrite(row->fd, page, sizeof(page), at) != sizeof(page))
			fail("write to the file: %s", strerror(errno));
	if (fsync(row->fd))
		fail("fsync: %s", strerror(errno));
}

static void create(struct row *row)
{
	unsigned int flags = row->mem->flags;
	size_t align = pmd_size > huge_size ? pmd_size : huge_size;

	row->stride = flags & M_HUGETLB ? huge_size : page_size;
	row->folio = flags & M_THP ? pmd_size :
		     flags & M_MTHP ? MTHP_SIZE : row->stride;
	row->len = flags & M_HUGETLB ? HUGE_PAGES * huge_size :
		   flags & M_THP ? 2 * pmd_size : SMALL_PAGES * page_size;
	row->nr = row->len / row->stride;
	row->fd = flags & (M_MEMFD | M_TMPFS | M_FS) ? open_file(row) : -1;
	row->uffd = -1;
	row->go = eventfd(0, EFD_CLOEXEC);
	row->done = eventfd(0, EFD_CLOEXEC);
	if (row->go < 0 || row->done < 0)
		fail("eventfd: %s", strerror(errno));
	if (flags & M_FS)
		fill_file(row);
	if (flags & M_LARGE && !is_anon(row->mem) &&
	    !(row->scenario->flags & S_UNTOUCHED))
		make_large(row);
	row->addr = map_at(row, reserve(row->len, align));
}

/* Is it what its name says? */
static void prove_kind(struct row *row)
{
	const char *key = is_anon(row->mem) ? "AnonHugePages" : "ShmemPmdMapped";
	const uint64_t compound = KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL;
	size_t by_pmds, at;

	if (!(row->mem->flags & M_LARGE))
		return;
	by_pmds = smaps_bytes(row->addr, row->len, key);
	if (by_pmds != (row->mem->flags & M_THP ? row->len : 0))
		skip("%zu bytes of %zu are mapped by PMDs", by_pmds, row->len);
	for (at = 0; at < row->len; at += page_size)
		if (!(page_flags(pfn_of(row->addr + at)) & compound))
			skip("the page at %#zx is not of a large folio", at);
}

static void populate(struct row *row)
{
	bool dirty = row->scenario->flags & S_DIRTY;
	int i;

	for (i = 0; i < row->nr; i++) {
		char *at = row->addr + i * row->stride;

		if (dirty)
			put(at, 1);
		else
			get(at);
		if (!(pagemap_entry(at) & PM_PRESENT))
			fail("page %d is not there after it was touched", i);
	}
	prove_kind(row);
}

/*
 * userfaultfd: these do nothing in the first run.
 */

static int register_for(struct row *row, uint64_t mode)
{
	struct uffdio_register reg = {
		.range.start = (uintptr_t)row->addr,
		.range.len = row->len,
		.mode = mode,
	};

	return ioctl(row->uffd, UFFDIO_REGISTER, &reg) ? errno : 0;
}

static void must_register(struct row *row, uint64_t mode)
{
	int err = row->registered ? register_for(row, mode) : 0;

	if (err)
		fail("UFFDIO_REGISTER: %s", strerror(err));
}

static void arm(struct row *row)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
			    row->scenario->features |
			    (row->mode->async ? UFFD_FEATURE_WP_ASYNC : 0) |
			    (is_anon(row->mem) ? 0 : UFFD_FEATURE_WP_HUGETLBFS_SHMEM),
	};

	if (!row->registered)
		return;
	if (row->scenario->more == UFFDIO_REGISTER_MODE_MINOR)
		api.features |= UFFD_FEATURE_MINOR_HUGETLBFS | UFFD_FEATURE_MINOR_SHMEM;
	if (api.features & ~uffd_features)
		skip("the kernel lacks a feature of userfaultfd");
	row->uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (row->uffd < 0 || ioctl(row->uffd, UFFDIO_API, &api))
		fail("userfaultfd: %s", strerror(errno));
	must_register(row, UFFDIO_REGISTER_MODE_WP);
}

static void unregister(struct row *row)
{
	struct uffdio_range range = {
		.start = (uintptr_t)row->addr,
		.len = row->len,
	};

	if (row->registered && ioctl(row->uffd, UFFDIO_UNREGISTER, &range))
		fail("UFFDIO_UNREGISTER: %s", strerror(errno));
}

static void disarm(struct row *row)
{
	if (row->registered)
		close(row->uffd);
	row->uffd = -1;
}

static void set_protection(struct row *row, size_t from, size_t len, bool on)
{
	struct uffdio_writeprotect arg = {
		.range.start = (uintptr_t)row->addr + from,
		.range.len = len,
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};
	size_t at;

	if (!row->registered)
		return;
	if (ioctl(row->uffd, UFFDIO_WRITEPROTECT, &arg))
		fail("UFFDIO_WRITEPROTECT: %s", strerror(errno));
	for (at = from; at < from + len; at += row->stride)
		if (on != !!(pagemap_entry(row->addr + at) & PM_UFFD_WP))
			fail("the page at %#zx is %sprotected", at, on ? "not " : "");
}

static void protect(struct row *row)
{
	set_protection(row, 0, row->len, true);
}

static void unprotect(struct row *row)
{
	set_protection(row, 0, row->len, false);
}

/* Have the kernel map a page that is missing, or that only the file has. */
static void fill_page(struct row *row, size_t at, bool wp)
{
	struct uffdio_continue minor = {
		.range.start = (uintptr_t)row->addr + at,
		.range.len = row->stride,
		.mode = wp ? UFFDIO_CONTINUE_MODE_WP : 0,
	};
	struct uffdio_copy missing = {
		.dst = (uintptr_t)row->addr + at,
		.src = (uintptr_t)scratch,
		.len = row->stride,
		.mode = wp ? UFFDIO_COPY_MODE_WP : 0,
	};

	bool by_file = row->scenario->more == UFFDIO_REGISTER_MODE_MINOR;

	if (!(by_file ? ioctl(row->uffd, UFFDIO_CONTINUE, &minor) :
			ioctl(row->uffd, UFFDIO_COPY, &missing)))
		return;
	if (wp && errno == EINVAL)
		skip("the kernel cannot protect a page that it fills");
	fail("UFFDIO_%s: %s", by_file ? "CONTINUE" : "COPY", strerror(errno));
}

/*
 * The writes: another thread or the child does them, this one resolves.
 */

static void *writer(void *arg)
{
	count_all(arg);
	return NULL;
}

static void resolve_event(struct row *row)
{
	struct uffd_msg msg;
	bool wp, ok;
	size_t at;

	if (read(row->uffd, &msg, sizeof(msg)) != sizeof(msg) ||
	    msg.event != UFFD_EVENT_PAGEFAULT)
		fail("spurious: not the event of a write");
	at = (char *)(uintptr_t)msg.arg.pagefault.address - row->addr;
	wp = msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP;
	if (at >= row->len)
		fail("spurious: an event for another range");
	if (row->scenario->flags & S_MISSING)
		ok = !wp && !(pagemap_entry(row->addr + at) & PM_PRESENT);
	else
		ok = wp && row->notice && pagemap_entry(row->addr + at) & PM_UFFD_WP;
	if (!ok)
		fail("spurious: an event for the page at %#zx", at);
	row->noticed++;
	if (wp)
		set_protection(row, at, row->stride, false);
	else
		fill_page(row, at, false);
}

/* Where there are no events, pagemap tells. */
static void check_written(struct row *row, bool written)
{
	int i;

	for (i = 0; i < row->nr; i++) {
		char *at = row->addr + i * row->stride;

		if (!!(pagemap_entry(at) & PM_UFFD_WP) == written ||
		    scan_written(at) != written)
			fail("lost: page %d is %sreported as written %s the write",
			     i, written ? "not " : "", written ? "after" : "before");
	}
}

static void write_all(struct row *row)
{
	bool scan = row->notice && row->mode->async &&
		    !(row->scenario->flags & S_MISSING);
	struct pollfd fds[2] = {
		{ .fd = row->done, .events = POLLIN },
		{ .fd = row->uffd, .events = POLLIN },
	};
	uint64_t one = 1;
	pthread_t thread;

	if (scan)
		check_written(row, false);
	if (row->scenario->flags & S_CHILD) {
		if (write(row->go, &one, 8) != 8)
			fail("cannot wake the child");
	} else if (pthread_create(&thread, NULL, writer, row)) {
		fail("cannot start a thread");
	}
	while (poll(fds, 2, -1) > 0 && !fds[0].revents)
		resolve_event(row);
	if (scan) {
		check_written(row, true);
		row->noticed = row->nr;
	}
	if (row->notice && row->noticed != row->nr)
		fail("lost: %ld events for %d writes", row->noticed, row->nr);
}

/*
 * Scenarios: mprotect(), registering, and what the memory is registered for
 */

static void set_prot(struct row *row, int prot)
{
	if (mprotect(row->addr, row->len, prot))
		fail("mprotect: %s", strerror(errno));
}

static void mprotect_and_back(struct row *row)
{
	set_prot(row, row->scenario->arg);
	set_prot(row, PROT_READ | PROT_WRITE);
}

/* vm_page_prot is that of a mapping that was never registered. */
static void unregister_and_read(struct row *row)
{
	unregister(row);
	populate(row);
}

/* The last page is protected, the writes are to the others. */
static void protect_neighbour(struct row *row)
{
	row->nr--;
	set_protection(row, row->nr * row->stride, row->stride, true);
}

/* PAGEMAP_SCAN protects huge pages in one piece; then a page of each is split off. */
static void scan_neighbour(struct row *row)
{
	row->nr--;
	if (row->registered &&
	    scan_protect(row->addr + row->nr * row->stride, row->stride) < 0)
		fail("PAGEMAP_SCAN: %s", strerror(errno));
}

static void scan_and_protect(struct row *row)
{
	size_t at;

	if (row->registered && scan_protect(row->addr, row->len) < 0)
		fail("PAGEMAP_SCAN: %s", strerror(errno));
	for (at = 0; at < row->len; at += row->folio)
		set_protection(row, at, row->stride, true);
}

/* Each page is inaccessible, until the first access resolves that. */
static void protect_accesses(struct row *row)
{
	struct uffdio_writeprotect arg = {
		.range.start = (uintptr_t)row->addr,
		.range.len = row->len,
		.mode = UFFDIO_RWPROTECT_MODE_RWP,
	};

	unregister(row);
	must_register(row, UFFDIO_REGISTER_MODE_RWP);
	if (row->registered && ioctl(row->uffd, UFFDIO_RWPROTECT, &arg))
		fail("UFFDIO_RWPROTECT: %s", strerror(errno));
}

/* What was protected before is forgotten. */
static void register_again(struct row *row)
{
	unregister(row);
	must_register(row, UFFDIO_REGISTER_MODE_WP);
	if (row->notice)
		protect(row);
}

static void arm_again(struct row *row)
{
	disarm(row);
	arm(row);
	if (row->notice)
		protect(row);
}

static void register_more(struct row *row)
{
	must_register(row, UFFDIO_REGISTER_MODE_WP | row->scenario->more);
}

/* It may be refused, or else is the end of the protection. */
static void register_less(struct row *row)
{
	int err = row->registered ? register_for(row, UFFDIO_REGISTER_MODE_MISSING) : 0;

	if (err && err != EBUSY)
		fail("UFFDIO_REGISTER: %s", strerror(err));
	if (!err)
		row->notice = false;
}

/* Shared pages stay in the file. */
static void zap(struct row *row)
{
	int i;

	if (madvise(row->addr, row->len, MADV_DONTNEED))
		fail("MADV_DONTNEED: %s", strerror(errno));
	for (i = 0; i < row->nr; i++)
		if (pagemap_entry(row->addr + i * row->stride) & PM_PRESENT)
			skip("page %d is still mapped", i);
}

static void zap_and_read(struct row *row)
{
	zap(row);
	populate(row);
}

/* The pages come through the userfaultfd, protected or not. */
static void fill(struct row *row)
{
	size_t at;

	if (!(row->scenario->flags & S_UNTOUCHED))
		zap(row);
	register_more(row);
	if (!row->registered)
		populate(row);
	for (at = 0; row->registered && at < row->len; at += row->stride)
		fill_page(row, at, row->notice);
}

/*
 * Scenarios: migration and NUMA hinting
 */

static void check_node(struct row *row, int node)
{
	size_t at;

	for (at = 0; at < row->len; at += row->folio)
		if (node_of(row->addr + at) != node)
			skip("the page at %#zx is not on node %d", at, node);
}

static void move_to(struct row *row, int node)
{
	size_t at;

	for (at = 0; at < row->len; at += row->folio) {
		void *page = row->addr + at;
		int status = -1;

		if (syscall(__NR_move_pages, 0, 1UL, &page, &node, &status, 2))
			skip("move_pages: %s", strerror(errno));
	}
	check_node(row, node);
}

static void migrate(struct row *row)
{
	move_to(row, nodes[0]);
	move_to(row, nodes[1]);
}

/* An entry that is not writable when the page is moved, for no reason left */
static void mprotect_migrate(struct row *row)
{
	move_to(row, nodes[0]);
	set_prot(row, PROT_READ);
	move_to(row, nodes[1]);
	set_prot(row, PROT_READ | PROT_WRITE);
	move_to(row, nodes[0]);
}

static void pin_to(int node)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(node_cpu[node], &set);
	sched_setaffinity(0, sizeof(set), &set);
}

/* Have the pages of the row made inaccessible, and take the hinting faults. */
static void take_hints(struct row *row)
{
	size_t at;
	uint64_t until = now_ms() + 8000, burn;
	bool hinted[SMALL_PAGES] = { };
	size_t left = row->len / row->folio;
	long long before;

	while (left) {
		if (now_ms() > until)
			skip("%zu pages took no hinting fault", left);
		if (!write_file(NUMAB_ON, "1"))
			skip("no NUMA balancing: %s", strerror(errno));
		for (burn = now_ms() + 50; now_ms() < burn;)
			;
		write_file(NUMAB_ON, "0");
		for (at = 0; at < row->len; at += row->folio) {
			before = vm_counter("numa_hint_faults");
			get(row->addr + at);
			if (vm_counter("numa_hint_faults") == before ||
			    hinted[at / row->folio])
				continue;
			hinted[at / row->folio] = true;
			left--;
		}
	}
}

static void numa_hint(struct row *row)
{
	pin_to(1);
	move_to(row, nodes[row->scenario->arg]);
	take_hints(row);
	check_node(row, nodes[1]);
}

/*
 * There is no page to move it to: its entry is not even replaced. Only what the
 * task allocates without waiting fails, and that is not needed otherwise.
 */
static void numa_hint_nomem(struct row *row)
{
	long before = read_long(FAIL_PAGE "times");

	pin_to(1);
	move_to(row, nodes[0]);
	if (!write_file("/proc/thread-self/make-it-fail", "1"))
		skip("no failing allocations: %s", strerror(errno));
	take_hints(row);
	write_file("/proc/thread-self/make-it-fail", "0");
	check_node(row, nodes[0]);
	if (before - read_long(FAIL_PAGE "times") < (long)(row->len / row->folio))
		skip("nobody tried to move the pages");
}

/* Somebody holds a reference to each page, so that it cannot be moved. */
static void numa_hint_held(struct row *row)
{
	size_t at;
	struct iovec iov = { .iov_len = page_size };
	long long before;
	int pipes[2];

	pin_to(1);
	move_to(row, nodes[0]);
	if (pipe(pipes) || fcntl(pipes[1], F_SETPIPE_SZ, SMALL_PAGES * page_size) < 0)
		fail("pipe: %s", strerror(errno));
	for (at = 0; at < row->len; at += row->folio) {
		iov.iov_base = row->addr + at;
		if (vmsplice(pipes[1], &iov, 1, SPLICE_F_NONBLOCK) != (ssize_t)page_size)
			skip("vmsplice: %s", strerror(errno));
	}
	before = vm_counter("pgmigrate_fail");
	take_hints(row);
	check_node(row, nodes[0]);
	if (vm_counter("pgmigrate_fail") - before < (long long)(row->len / row->folio))
		skip("nobody tried to move the pages");
}

/*
 * Scenarios: fork() and mremap(). They wait until somebody has read their event.
 */

static void *read_event(void *arg)
{
	struct row *row = arg;
	struct pollfd fd = { .fd = row->uffd, .events = POLLIN };

	if (poll(&fd, 1, EVENT_MS) != 1 ||
	    read(row->uffd, &row->event, sizeof(row->event)) != sizeof(row->event))
		fail("lost: no event of fork() or mremap()");
	return NULL;
}

static bool start_reader(struct row *row, pthread_t *reader)
{
	if (!row->registered || !row->scenario->features)
		return false;
	if (pthread_create(reader, NULL, read_event, row))
		fail("cannot start a thread");
	return true;
}

static void fork_mapping(struct row *row)
{
	bool child_writes = row->scenario->flags & S_CHILD;
	pthread_t reader;
	bool event = start_reader(row, &reader);
	uint64_t go;

	row->child = fork();
	if (!row->child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (read(row->go, &go, 8) == 8)
			count_all(row);
		pause();
		_exit(0);
	}
	if (row->child < 0)
		fail("fork: %s", strerror(errno));
	if (event) {
		pthread_join(reader, NULL);
		if (row->event.event != UFFD_EVENT_FORK)
			fail("spurious: not the event of fork()");
		if (child_writes)
			row->uffd = row->event.arg.fork.ufd;
	}
	if (child_writes)
		look_at(row->child);
}

/* A page that the child shares must not become writable without a copy. */
static void fork_and_mprotect(struct row *row)
{
	fork_mapping(row);
	mprotect_and_back(row);
}

static void move_mapping(struct row *row)
{
	size_t align = pmd_size > huge_size ? pmd_size : huge_size;
	char *to = reserve(row->len, align);
	pthread_t reader;
	bool event = start_reader(row, &reader);

	if (mremap(row->addr, row->len, row->len, MREMAP_MAYMOVE | MREMAP_FIXED,
		   to) == MAP_FAILED)
		skip("mremap: %s", strerror(errno));
	if (event) {
		pthread_join(reader, NULL);
		if (row->event.event != UFFD_EVENT_REMAP ||
		    row->event.arg.remap.from != (uintptr_t)row->addr ||
		    row->event.arg.remap.to != (uintptr_t)to ||
		    row->event.arg.remap.len != row->len)
			fail("spurious: not the event of mremap()");
	}
	row->addr = to;
}

/*
 * Scenarios: soft-dirty tracking
 */

static void check_soft_dirty(struct row *row, bool dirty)
{
	int i;

	for (i = 0; i < row->nr; i++)
		if (!!(pagemap_entry(row->addr + i * row->stride) & PM_SOFT_DIRTY) != dirty)
			fail("page %d is %ssoft-dirty %s the write", i,
			     dirty ? "not " : "", dirty ? "after" : "before");
}

static void track_soft_dirty(struct row *row)
{
	if (!(pagemap_entry(row->addr) & PM_SOFT_DIRTY) ||
	    !write_file("/proc/self/clear_refs", "4") ||
	    pagemap_entry(row->addr) & PM_SOFT_DIRTY)
		skip("no soft-dirty tracking");
	if (row->scenario->arg)
		mprotect_and_back(row);
	check_soft_dirty(row, false);
}

/* The last page of each huge page goes, and nobody writes. */
static void split_soft_dirty(struct row *row)
{
	size_t at;

	track_soft_dirty(row);
	for (at = row->folio; at <= row->len; at += row->folio)
		if (madvise(row->addr + at - page_size, page_size, MADV_DONTNEED))
			fail("MADV_DONTNEED: %s", strerror(errno));
	if (smaps_bytes(row->addr, row->len, "AnonHugePages"))
		skip("the huge pages were not split");
	row->nr = row->folio / row->stride - 1;
	check_soft_dirty(row, false);
}

/*
 * The tables
 */

static const struct memory memories[] = {
	{ "anon",		M_PRIVATE },
	{ "anon-thp",		M_PRIVATE | M_THP },
	{ "anon-mthp",		M_PRIVATE | M_MTHP },
	{ "shared-anon",	0 },
	{ "memfd",		M_MEMFD },
	{ "tmpfs",		M_TMPFS },
	{ "shmem-thp",		M_MEMFD | M_THP },
	{ "shmem-mthp",		M_MEMFD | M_MTHP },
	{ "hugetlb-shared",	M_MEMFD | M_HUGETLB },
	{ "hugetlb-private",	M_MEMFD | M_HUGETLB | M_PRIVATE },
	{ "file",		M_FS },
};

static const struct mode modes[] = {
	{ .name = "sync" },
	{ .name = "async", .async = true },
};

static const struct scenario scenarios[] = {
	{ .name = "read" },
	{ .name = "read_in", .flags = S_READS, .run = zap },
	{ .name = "read_in_write", .run = zap_and_read },
	/* private memory: of new pages */
	{ .name = "first_write", .flags = S_DIRTY, .run = zap },
	{ .name = "mprotect_read_clean", .run = mprotect_and_back, .arg = PROT_READ },
	{ .name = "mprotect_read_dirty", .flags = S_DIRTY | S_FREE,
	  .run = mprotect_and_back,
	  .arg = PROT_READ },
	{ .name = "mprotect_none_clean", .run = mprotect_and_back, .arg = PROT_NONE },
	{ .name = "mprotect_none_dirty", .flags = S_DIRTY | S_FREE,
	  .run = mprotect_and_back,
	  .arg = PROT_NONE },
	{ .name = "unprotect_clean", .flags = S_PROTECT, .run = unprotect },
	{ .name = "unprotect_dirty", .flags = S_PROTECT | S_DIRTY, .run = unprotect },
	{ .name = "never_protected_clean", .flags = S_LATE, .run = unprotect },
	{ .name = "never_protected_dirty", .flags = S_LATE | S_DIRTY, .run = unprotect },
	{ .name = "protect_neighbour_clean", .run = protect_neighbour },
	{ .name = "protect_neighbour_dirty", .flags = S_DIRTY,
	  .run = protect_neighbour },
	{ .name = "resolve_event", .flags = S_SYNC | S_KEPT },
	{ .name = "resolve_event_clean", .flags = S_SYNC | S_PROTECT | S_NOTICED },

	{ .name = "unregister_clean", .run = unregister },
	{ .name = "unregister_dirty", .flags = S_DIRTY, .run = unregister },
	{ .name = "unregister_read", .flags = S_UNTOUCHED, .run = unregister_and_read },
	{ .name = "protect_unregister_clean", .flags = S_PROTECT, .run = unregister },
	{ .name = "protect_unregister_dirty", .flags = S_PROTECT | S_DIRTY,
	  .run = unregister },
	{ .name = "protect_close_clean", .flags = S_PROTECT, .run = disarm },
	{ .name = "protect_close_dirty", .flags = S_PROTECT | S_DIRTY, .run = disarm },

	/* registered once more, after what is protected was dropped */
	{ .name = "register_again_clean", .flags = S_PROTECT, .run = register_again },
	{ .name = "register_again_dirty", .flags = S_PROTECT | S_DIRTY,
	  .run = register_again },
	{ .name = "register_again_protect", .flags = S_KEPT, .run = register_again },
	{ .name = "reopen_clean", .flags = S_PROTECT, .run = arm_again },
	{ .name = "reopen_dirty", .flags = S_PROTECT | S_DIRTY, .run = arm_again },
	{ .name = "reopen_protect", .flags = S_KEPT, .run = arm_again },
	/* registered once more: for the same, for more, for something else */
	{ .name = "register_twice_clean", .run = register_more },
	{ .name = "register_twice_dirty", .flags = S_DIRTY, .run = register_more },
	{ .name = "register_twice_protected", .flags = S_KEPT, .run = register_more },
	{ .name = "register_missing_clean", .run = register_more,
	  .more = UFFDIO_REGISTER_MODE_MISSING },
	{ .name = "register_missing_dirty", .flags = S_DIRTY, .run = register_more,
	  .more = UFFDIO_REGISTER_MODE_MISSING },
	{ .name = "register_missing_protected", .flags = S_KEPT, .run = register_more,
	  .more = UFFDIO_REGISTER_MODE_MISSING },
	{ .name = "register_minor_clean", .run = register_more,
	  .more = UFFDIO_REGISTER_MODE_MINOR },
	{ .name = "register_minor_dirty", .flags = S_DIRTY, .run = register_more,
	  .more = UFFDIO_REGISTER_MODE_MINOR },
	{ .name = "register_minor_protected", .flags = S_KEPT, .run = register_more,
	  .more = UFFDIO_REGISTER_MODE_MINOR },
	{ .name = "register_less_protected", .flags = S_KEPT, .run = register_less,
	  .more = UFFDIO_REGISTER_MODE_MISSING },
	/* the same before there are pages, which then come through userfaultfd */
	{ .name = "copy", .flags = S_UNTOUCHED | S_DIRTY, .run = fill,
	  .more = UFFDIO_REGISTER_MODE_MISSING },
	{ .name = "copy_protected", .flags = S_UNTOUCHED | S_DIRTY | S_NOTICED,
	  .run = fill, .more = UFFDIO_REGISTER_MODE_MISSING },
	{ .name = "copy_on_event", .flags = S_UNTOUCHED | S_NOTICED | S_MISSING,
	  .run = register_more, .more = UFFDIO_REGISTER_MODE_MISSING },
	{ .name = "continue", .flags = S_DIRTY, .run = fill,
	  .more = UFFDIO_REGISTER_MODE_MINOR },
	{ .name = "continue_protected", .flags = S_DIRTY | S_NOTICED, .run = fill,
	  .more = UFFDIO_REGISTER_MODE_MINOR },

	{ .name = "migrate_clean", .flags = S_NODES, .run = migrate },
	{ .name = "migrate_dirty", .flags = S_NODES | S_DIRTY, .run = migrate },
	{ .name = "migrate_late_clean", .flags = S_NODES | S_LATE, .run = migrate },
	{ .name = "mprotect_migrate_clean", .flags = S_NODES, .run = mprotect_migrate },
	{ .name = "mprotect_migrate_dirty", .flags = S_NODES | S_DIRTY,
	  .run = mprotect_migrate },
	{ .name = "numa_hint_clean", .flags = S_NODES | S_HINTS, .run = numa_hint,
	  .arg = 0 },
	{ .name = "numa_hint_dirty", .flags = S_NODES | S_HINTS | S_DIRTY,
	  .run = numa_hint, .arg = 0 },
	{ .name = "numa_hint_local_clean", .flags = S_NODES | S_HINTS,
	  .run = numa_hint, .arg = 1 },
	{ .name = "numa_hint_local_dirty", .flags = S_NODES | S_HINTS | S_DIRTY,
	  .run = numa_hint, .arg = 1 },
	{ .name = "numa_hint_nomem_clean", .flags = S_NODES | S_HINTS | S_NOMEM,
	  .run = numa_hint_nomem },
	{ .name = "numa_hint_nomem_dirty",
	  .flags = S_NODES | S_HINTS | S_NOMEM | S_DIRTY, .run = numa_hint_nomem },
	{ .name = "numa_hint_held_clean", .flags = S_NODES | S_HINTS,
	  .run = numa_hint_held },
	{ .name = "numa_hint_held_dirty", .flags = S_NODES | S_HINTS | S_DIRTY,
	  .run = numa_hint_held },

	/* the child is not registered, the mapping that was moved neither */
	{ .name = "fork_parent_clean", .run = fork_mapping },
	{ .name = "fork_parent_dirty", .flags = S_DIRTY, .run = fork_mapping },
	{ .name = "fork_parent_protected", .flags = S_KEPT, .run = fork_mapping },
	{ .name = "fork_mprotect", .flags = S_DIRTY | S_COPIES,
	  .run = fork_and_mprotect, .arg = PROT_READ },
	{ .name = "fork_child", .flags = S_CHILD | S_DIRTY, .run = fork_mapping },
	{ .name = "fork_child_dropped", .flags = S_CHILD | S_PROTECT | S_DIRTY,
	  .run = fork_mapping },
	{ .name = "mremap_clean", .run = move_mapping },
	{ .name = "mremap_dirty", .flags = S_DIRTY, .run = move_mapping },
	{ .name = "mremap_dropped", .flags = S_PROTECT | S_DIRTY,
	  .run = move_mapping },
	/* both are if the event was asked for */
	{ .name = "fork_event_parent_clean", .run = fork_mapping,
	  .features = UFFD_FEATURE_EVENT_FORK },
	{ .name = "fork_event_parent_dirty", .flags = S_DIRTY, .run = fork_mapping,
	  .features = UFFD_FEATURE_EVENT_FORK },
	{ .name = "fork_event_parent_protected", .flags = S_KEPT, .run = fork_mapping,
	  .features = UFFD_FEATURE_EVENT_FORK },
	{ .name = "fork_event_child_clean", .flags = S_CHILD, .run = fork_mapping,
	  .features = UFFD_FEATURE_EVENT_FORK },
	{ .name = "fork_event_child_dirty", .flags = S_CHILD | S_DIRTY,
	  .run = fork_mapping, .features = UFFD_FEATURE_EVENT_FORK },
	{ .name = "fork_event_child_protected", .flags = S_CHILD | S_KEPT,
	  .run = fork_mapping, .features = UFFD_FEATURE_EVENT_FORK },
	{ .name = "mremap_event_clean", .run = move_mapping,
	  .features = UFFD_FEATURE_EVENT_REMAP },
	{ .name = "mremap_event_dirty", .flags = S_DIRTY, .run = move_mapping,
	  .features = UFFD_FEATURE_EVENT_REMAP },
	{ .name = "mremap_event_protected", .flags = S_KEPT, .run = move_mapping,
	  .features = UFFD_FEATURE_EVENT_REMAP },

	/* a fault that maps the page comes before the one that is reported */
	{ .name = "sync_untouched", .flags = S_SYNC | S_UNTOUCHED | S_PROTECT |
	  S_NOTICED | S_TWICE, .features = UFFD_FEATURE_WP_UNPOPULATED },
	{ .name = "async_populated", .flags = S_ASYNC | S_KEPT },
	{ .name = "async_populated_clean", .flags = S_ASYNC | S_PROTECT | S_NOTICED },
	{ .name = "async_scan_protect", .flags = S_ASYNC | S_DIRTY | S_NOTICED,
	  .run = scan_and_protect },
	{ .name = "async_scan_neighbour", .flags = S_ASYNC | S_DIRTY,
	  .run = scan_neighbour },
	{ .name = "async_untouched",
	  .flags = S_ASYNC | S_UNTOUCHED | S_PROTECT | S_NOTICED },
	{ .name = "rwp_async", .flags = S_ASYNC | S_DIRTY | S_MAY_FAULT,
	  .run = protect_accesses,
	  .features = UFFD_FEATURE_RWP | UFFD_FEATURE_RWP_ASYNC },
	{ .name = "soft_dirty", .flags = S_SOFT_DIRTY | S_DIRTY,
	  .run = track_soft_dirty },
	{ .name = "soft_dirty_split", .flags = S_SOFT_DIRTY | S_DIRTY,
	  .run = split_soft_dirty },
	{ .name = "soft_dirty_clean", .flags = S_SOFT_DIRTY, .run = track_soft_dirty },
	{ .name = "soft_dirty_mprotect", .flags = S_SOFT_DIRTY | S_DIRTY,
	  .run = track_soft_dirty, .arg = PROT_READ },
	{ .name = "soft_dirty_mprotect_clean", .flags = S_SOFT_DIRTY,
	  .run = track_soft_dirty, .arg = PROT_READ },
};

/* Why there is no such row */
static const char *impossible(const struct scenario *scenario,
			      const struct memory *mem, const struct mode *mode)
{
	if (scenario->flags & S_SYNC && mode->async)
		return "there are no events in WP_ASYNC mode";
	if (scenario->flags & S_ASYNC && !mode->async)
		return "this is WP_ASYNC mode only";
	if (mem->flags & M_FS && (!mode->async || scenario->more ||
				  scenario->features & UFFD_FEATURE_RWP))
		return "userfaultfd takes files only in WP_ASYNC mode, and for nothing else";
	if (mem->flags & M_HUGETLB && scenario->flags & (S_HINTS | S_SOFT_DIRTY))
		return "not for hugetlb";
	if (mem->flags & M_MTHP && scenario->flags & S_SOFT_DIRTY && scenario->arg)
		return "mprotect() makes soft-dirty what it changes in a batch";
	if (mem->flags & M_FS && scenario->flags & S_HINTS &&
	    scenario->flags & S_DIRTY)
		return "NUMA balancing does not look at dirty pages of files";
	if (is_anon(mem) && scenario->flags & S_NODES && !(scenario->flags & S_DIRTY))
		return "the zero page is on no node";
	if (is_anon(mem) && mem->flags & M_LARGE &&
	    (!(scenario->flags & S_DIRTY) || scenario->flags & S_UNTOUCHED))
		return "only a write makes a large folio";
	if (mem->flags & M_LARGE && scenario->flags & S_UNTOUCHED && scenario->more)
		return "UFFDIO_COPY makes no large folio";
	if (scenario->run == split_soft_dirty &&
	    !(is_anon(mem) && mem->flags & M_THP))
		return "other PMDs are not split, but dropped";
	if (scenario->flags & S_COPIES &&
	    (!(mem->flags & M_PRIVATE) || mem->flags & M_THP))
		return "nothing is copied, or not page by page";
	if (mem->flags & M_PRIVATE && scenario->more == UFFDIO_REGISTER_MODE_MINOR)
		return "there are no minor faults in private memory";
	return NULL;
}

/*
 * Running them
 */

static void *idle(void *arg)
{
	pause();
	return arg;
}

static void run_once(struct row *row)
{
	unsigned int flags = row->scenario->flags;
	/* older kernels do not populate a registered VMA with such folios */
	bool late = flags & S_LATE ||
		    (row->mem->flags & M_MTHP && is_anon(row->mem));

	/* rseq must not be told of another CPU while faults are counted */
	if (nr_nodes)
		pin_to(0);
	look_at(getpid());
	create(row);
	if (!late)
		arm(row);
	if (!(flags & S_UNTOUCHED))
		populate(row);
	if (late)
		arm(row);
	if (flags & S_PROTECT)
		protect(row);
	row->notice = flags & S_NOTICED && row->registered;
	if (row->scenario->run)
		row->scenario->run(row);
	write_all(row);
	if (flags & S_SOFT_DIRTY)
		check_soft_dirty(row, true);
	if (row->child) {
		kill(row->child, SIGKILL);
		waitpid(row->child, NULL, 0);
	}
	report->noticed = row->noticed;
	report->nr = row->nr;
}

static __noreturn void run_row(const struct scenario *scenario,
			       const struct memory *mem, const struct mode *mode)
{
	struct row rows[2] = {
		{ .scenario = scenario, .mem = mem, .mode = mode },
		{ .scenario = scenario, .mem = mem, .mode = mode, .registered = true },
	};
	pthread_t thread;

	alarm(ROW_SECONDS);
	if (scenario->flags & S_NODES && nr_nodes < 2)
		skip("needs two nodes with memory and a CPU");
	scratch = mmap(NULL, huge_size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* without a second one, hinting passes over private memory */
	if (scratch == MAP_FAILED || pthread_create(&thread, NULL, idle, NULL))
		fail("cannot start a thread");
	run_once(&rows[0]);
	run_once(&rows[1]);
	report->outcome = DONE;
	_exit(0);
}

static void set_thp(const struct memory *mem)
{
	static const char * const knob[] = { "enabled", "shmem_enabled" };
	char path[128];
	unsigned int i;

	set_knob(THP "enabled", "madvise");
	set_knob(THP "shmem_enabled", "advise");
	for (i = 0; i < ARRAY_SIZE(knob); i++) {
		snprintf(path, sizeof(path), THP "hugepages-%zukB/%s",
			 pmd_size >> 10, knob[i]);
		set_knob(path, mem->flags & M_MTHP ? "never" : "inherit");
		snprintf(path, sizeof(path), MTHP "/%s", knob[i]);
		set_knob(path, mem->flags & M_MTHP ? "inherit" : "never");
	}
}

static void set_knobs(const struct scenario *scenario, const struct memory *mem)
{
	char path[128];
	unsigned int i;

	set_knob(NUMAB_ON, "0");
	set_thp(mem);
	if (mem->flags & M_HUGETLB)
		for (i = 0; i < (unsigned int)nr_nodes; i++) {
			snprintf(path, sizeof(path),
				 NODES "node%d/hugepages/hugepages-%zukB/nr_hugepages",
				 nodes[i], huge_size >> 10);
			set_knob(path, "10");
		}
	if (scenario->flags & S_NOMEM) {
		set_knob(FAIL_PAGE "task-filter", "Y");
		set_knob(FAIL_PAGE "min-order", "0");
		set_knob(FAIL_PAGE "ignore-gfp-highmem", "N");
		set_knob(FAIL_PAGE "probability", "100");
		set_knob(FAIL_PAGE "interval", "1");
		set_knob(FAIL_PAGE "verbose", "0");
		set_knob(FAIL_PAGE "times", "1000000");
	}
	if (scenario->flags & S_HINTS) {
		set_knob(NUMAB "scan_delay_ms", "1");
		set_knob(NUMAB "scan_period_min_ms", "1");
		set_knob(NUMAB "scan_size_mb", "16");
	}
}

static void judge(const char *name, const struct scenario *scenario,
		  const struct memory *mem)
{
	long unreg = report->faults[0], reg = report->faults[1];
	long nr = report->nr, noticed = report->noticed;
	/* a write that has to be noticed may need its fault anyway */
	long limit = unreg > noticed ? unreg : noticed;
	bool keep = mem->flags & M_FS || scenario->flags & S_SOFT_DIRTY;

	if (scenario->flags & S_TWICE)
		limit = 2 * noticed;
	/* what was protected may lose that, and still not be writable */
	if (scenario->flags & S_MAY_FAULT && limit < nr)
		limit = nr;
	/* a child that is registered gets the dirty entries of its parent */
	if (scenario->flags & S_CHILD && scenario->features)
		keep = false;
	ksft_print_msg("%s: %.3f %.3f (limit %.3f) faults a page\n", name,
		       (double)unreg / nr, (double)reg / nr, (double)limit / nr);
	if (scenario->flags & S_COPIES && (reg < nr || unreg < nr))
		ksft_test_result_fail("%s # %ld faults for %ld pages that are shared\n",
				      name, reg < unreg ? reg : unreg, nr);
	else if (scenario->flags & S_FREE && !(mem->flags & M_FS) && unreg)
		ksft_test_result_fail("%s # %ld faults for %ld pages without userfaultfd\n",
				      name, unreg, nr);
	else if (reg < noticed)
		ksft_test_result_fail("%s # lost: %ld faults for %ld writes to be noticed\n",
				      name, reg, noticed);
	else if (reg > limit || (keep && reg < unreg))
		ksft_test_result_fail("%s # %ld faults for %ld pages, %ld without userfaultfd%s\n",
				      name, reg, nr, unreg,
				      reg < limit ? ": too few" : "");
	else
		ksft_test_result_pass("%s\n", name);
}

static void do_row(const char *name, const struct scenario *scenario,
		   const struct memory *mem, const struct mode *mode)
{
	int status;
	pid_t pid;

	memset(report, 0, sizeof(*report));
	set_knobs(scenario, mem);
	/* a kernel that dies of it cannot tell afterwards */
	ksft_print_msg("row %s\n", name);
	fflush(stdout);
	pid = fork();
	if (!pid)
		run_row(scenario, mem, mode);
	if (pid < 0 || waitpid(pid, &status, 0) != pid) {
		ksft_test_result_fail("%s # fork: %s\n", name, strerror(errno));
		return;
	}
	write_file(NUMAB_ON, "0");
	switch (report->outcome) {
	case DONE:
		judge(name, scenario, mem);
		break;
	case SKIP:
		ksft_test_result_skip("%s # %s\n", name, report->text);
		break;
	case FAIL:
		ksft_test_result_fail("%s # %s\n", name, report->text);
		break;
	default:
		ksft_test_result_fail("%s # %s\n", name,
				      WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ?
				      "hang: not finished in time" : "crash");
	}
}

static int each_row(int argc, char **argv, bool run)
{
	unsigned int s, m, o;
	char name[96];
	int nr = 0, i;

	for (s = 0; s < ARRAY_SIZE(scenarios); s++)
		for (m = 0; m < ARRAY_SIZE(memories); m++)
			for (o = 0; o < ARRAY_SIZE(modes); o++) {
				if (impossible(&scenarios[s], &memories[m], &modes[o]))
					continue;
				snprintf(name, sizeof(name), "%s %s %s", scenarios[s].name,
					 memories[m].name, modes[o].name);
				for (i = 1; i < argc && !strstr(name, argv[i]); i++)
					;
				if (argc > 1 && i == argc)
					continue;
				nr++;
				if (run)
					do_row(name, &scenarios[s], &memories[m], &modes[o]);
			}
	return nr;
}

int main(int argc, char **argv)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd, nr;

	ksft_print_header();
	if (geteuid())
		ksft_exit_skip("needs root, for pagemap and the knobs in /sys\n");
	fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		ksft_exit_skip("no userfaultfd: %s\n", strerror(errno));
	uffd_features = api.features;
	close(fd);
	find_sizes();
	find_nodes();
	kpageflags_fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	vmstat_fd = open("/proc/vmstat", O_RDONLY | O_CLOEXEC);
	report = mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (kpageflags_fd < 0 || vmstat_fd < 0 || report == MAP_FAILED)
		ksft_exit_skip("needs /proc/kpageflags and /proc/vmstat\n");
	atexit(restore_knobs);

	nr = each_row(argc, argv, false);
	if (!nr)
		ksft_exit_skip("no row has that in its name\n");
	ksft_set_plan(nr);
	each_row(argc, argv, true);
	ksft_finished();
}
