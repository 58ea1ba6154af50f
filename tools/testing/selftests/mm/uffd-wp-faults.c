// SPDX-License-Identifier: GPL-2.0
/*
 * What userfaultfd write protection costs where nobody asked for it: a page
 * that is not protected must not take more faults in a mapping that is
 * registered than in one that is not.
 *
 * A test is a row: what happens before the writes (scenario) x kind of memory
 * x mode. Each row runs twice in a process of its own, first without and then
 * with userfaultfd, and counts the faults of the thread while it writes once to
 * each page. It passes if the second number is not above the first one, plus
 * one for each page whose write had to be noticed because it was protected.
 *
 * Somebody else may want to see a first write: a filesystem, or soft-dirty
 * tracking. Their rows fail as well if there are fewer faults.
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
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <linux/magic.h>

#include "../kselftest.h"
#include "uffd-wp-util.h"

#define ROW_SECONDS	20
#define SMALL_PAGES	64
#define HUGE_PAGES	4
#define PM_SOFT_DIRTY	BIT_ULL(55)

enum {
	M_PRIVATE	= 1 << 0,
	M_MEMFD		= 1 << 1,
	M_TMPFS		= 1 << 2,
	M_FS		= 1 << 3,	/* wants to see the first write */
	M_THP		= 1 << 4,
	M_HUGETLB	= 1 << 5,
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
	S_NODES		= 1 << 3,	/* needs a second node */
	S_HINTS		= 1 << 4,
	S_NOTICED	= 1 << 5,	/* each write has to be noticed once */
	S_FIRST_TOUCH	= 1 << 6,	/* there were no pages before */
	S_SOFT_DIRTY	= 1 << 7,	/* tracks writes itself */
};

struct row;

struct scenario {
	const char *name;
	unsigned int flags;
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
	int nr;			/* writes */
	int fd, uffd;
	long noticed;		/* faults that had to be, in a thread that waited */
	bool counted;
	long faults;
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
static long count_all(struct row *row)
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
		for (i = 0; i < nr; i++)
			put(addr + i * stride, i + 1);
		faults = faults_of_thread() - before;
	}
	return faults;
}

/*
 * Memory
 */

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
		madvise(addr, row->len, row->mem->flags & M_THP ?
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

static bool mapped_by_pmds(struct row *row)
{
	return smaps_bytes(row->addr, row->len, "ShmemPmdMapped") == row->len;
}

/* shmem puts no huge page into a VMA that is registered: make them before. */
static void make_huge(struct row *row)
{
	char *view = map_at(row, reserve(row->len, pmd_size));
	size_t i;

	for (i = 0; i < row->len; i += page_size)
		view[i] = 1;
	if (smaps_bytes(view, row->len, "ShmemPmdMapped") != row->len)
		skip("no huge page for shmem");
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
	row->len = flags & M_HUGETLB ? HUGE_PAGES * huge_size :
		   flags & M_THP ? 2 * pmd_size : SMALL_PAGES * page_size;
	row->nr = row->len / row->stride;
	row->fd = flags & (M_MEMFD | M_TMPFS | M_FS) ? open_file(row) : -1;
	row->uffd = -1;
	if (flags & M_FS)
		fill_file(row);
	if (flags & M_THP && !(row->scenario->flags & S_FIRST_TOUCH))
		make_huge(row);
	row->addr = map_at(row, reserve(row->len, align));
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
	if (row->mem->flags & M_THP && !mapped_by_pmds(row))
		skip("not mapped by PMDs");
}

/*
 * userfaultfd: these do nothing in the first run.
 */

static void arm(struct row *row)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
			    (row->mode->async ? UFFD_FEATURE_WP_ASYNC : 0) |
			    (row->mem->flags & M_PRIVATE && !(row->mem->flags & M_HUGETLB) ?
			     0 : UFFD_FEATURE_WP_HUGETLBFS_SHMEM),
	};
	struct uffdio_register reg = {
		.range.start = (uintptr_t)row->addr,
		.range.len = row->len,
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	if (row->scenario->flags & S_FIRST_TOUCH)
		api.features |= UFFD_FEATURE_WP_UNPOPULATED;
	if (!row->registered)
		return;
	if (api.features & ~uffd_features)
		skip("the kernel lacks a feature of userfaultfd");
	row->uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (row->uffd < 0 || ioctl(row->uffd, UFFDIO_API, &api))
		fail("userfaultfd: %s", strerror(errno));
	if (ioctl(row->uffd, UFFDIO_REGISTER, &reg))
		fail("UFFDIO_REGISTER: %s", strerror(errno));
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

/*
 * Scenarios
 */

static void nothing(struct row *row)
{
	arm(row);
	populate(row);
}

static void first_touch(struct row *row)
{
	arm(row);
	protect(row);
}

static void set_prot(struct row *row, int prot)
{
	if (mprotect(row->addr, row->len, prot))
		fail("mprotect: %s", strerror(errno));
}

static void mprotect_and_back(struct row *row)
{
	arm(row);
	populate(row);
	set_prot(row, row->scenario->arg);
	set_prot(row, PROT_READ | PROT_WRITE);
}

static void protect_unprotect(struct row *row)
{
	arm(row);
	populate(row);
	protect(row);
	unprotect(row);
}

/* Nothing of it was ever protected. */
static void only_unprotect(struct row *row)
{
	populate(row);
	arm(row);
	unprotect(row);
}

static void unregister(struct row *row)
{
	struct uffdio_range range = {
		.start = (uintptr_t)row->addr,
		.len = row->len,
	};

	arm(row);
	populate(row);
	if (row->registered && ioctl(row->uffd, UFFDIO_UNREGISTER, &range))
		fail("UFFDIO_UNREGISTER: %s", strerror(errno));
}

static void protect_unregister(struct row *row)
{
	struct uffdio_range range = {
		.start = (uintptr_t)row->addr,
		.len = row->len,
	};

	arm(row);
	populate(row);
	protect(row);
	if (row->registered && ioctl(row->uffd, UFFDIO_UNREGISTER, &range))
		fail("UFFDIO_UNREGISTER: %s", strerror(errno));
}

static void protect_close(struct row *row)
{
	arm(row);
	populate(row);
	protect(row);
	if (row->registered)
		close(row->uffd);
}

/* The other thread writes, this one resolves. Then all is written once more. */
static struct row *waiting_row;
static int writer_done;

static void *writer(void *arg)
{
	uint64_t one = 1;

	waiting_row->faults = count_all(waiting_row);
	if (write(writer_done, &one, 8) != 8)
		return NULL;
	return arg;
}

static void resolve_events(struct row *row)
{
	struct pollfd fds[2];
	struct uffd_msg msg;
	pthread_t thread;

	arm(row);
	populate(row);
	protect(row);
	waiting_row = row;
	writer_done = eventfd(0, EFD_CLOEXEC);
	if (pthread_create(&thread, NULL, writer, NULL))
		fail("cannot start a thread");
	fds[0] = (struct pollfd) { .fd = writer_done, .events = POLLIN };
	fds[1] = (struct pollfd) { .fd = row->uffd, .events = POLLIN };
	while (poll(fds, 2, -1) > 0 && !fds[0].revents) {
		if (read(row->uffd, &msg, sizeof(msg)) != sizeof(msg) ||
		    msg.event != UFFD_EVENT_PAGEFAULT)
			fail("no event could be read");
		row->noticed++;
		set_protection(row, (char *)(uintptr_t)msg.arg.pagefault.address -
			       row->addr, row->stride, false);
	}
	pthread_join(thread, NULL);
	if (row->registered && row->noticed != row->nr)
		fail("%ld events for %d protected pages", row->noticed, row->nr);
	row->faults += count_all(row);
	row->counted = true;
}

/* The first write to a protected page is noticed, the second is not. */
static void written_twice(struct row *row)
{
	int i;

	arm(row);
	populate(row);
	protect(row);
	row->faults = count_all(row);
	for (i = 0; row->registered && i < row->nr; i++)
		if (pagemap_entry(row->addr + i * row->stride) & PM_UFFD_WP ||
		    scan_written(row->addr + i * row->stride) != 1)
			fail("page %d is not reported as written", i);
	row->faults += count_all(row);
	row->counted = true;
}

static void check_node(struct row *row, int node)
{
	size_t step = row->mem->flags & M_THP ? pmd_size : row->stride, at;

	for (at = 0; at < row->len; at += step)
		if (node_of(row->addr + at) != node)
			skip("the page at %#zx is not on node %d", at, node);
}

static void move_to(struct row *row, int node)
{
	size_t step = row->mem->flags & M_THP ? pmd_size : row->stride, at;

	for (at = 0; at < row->len; at += step) {
		void *page = row->addr + at;
		int status = -1;

		if (syscall(__NR_move_pages, 0, 1UL, &page, &node, &status, 2))
			skip("move_pages: %s", strerror(errno));
	}
	check_node(row, node);
}

static void migrate(struct row *row)
{
	arm(row);
	populate(row);
	move_to(row, nodes[0]);
	move_to(row, nodes[1]);
}

/* An entry that is not writable when the page is moved, for no reason left */
static void mprotect_migrate(struct row *row)
{
	arm(row);
	populate(row);
	move_to(row, nodes[0]);
	set_prot(row, PROT_READ);
	move_to(row, nodes[1]);
	set_prot(row, PROT_READ | PROT_WRITE);
	move_to(row, nodes[0]);
}

static void migrate_late(struct row *row)
{
	populate(row);
	arm(row);
	move_to(row, nodes[0]);
	move_to(row, nodes[1]);
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
	size_t step = row->mem->flags & M_THP ? pmd_size : row->stride, at;
	uint64_t until = now_ms() + 8000, burn;
	bool hinted[SMALL_PAGES] = { };
	size_t left = row->len / step;
	long long before;

	while (left) {
		if (now_ms() > until)
			skip("%zu pages took no hinting fault", left);
		if (!write_file(NUMAB_ON, "1"))
			skip("no NUMA balancing: %s", strerror(errno));
		for (burn = now_ms() + 50; now_ms() < burn;)
			;
		write_file(NUMAB_ON, "0");
		for (at = 0; at < row->len; at += step) {
			before = vm_counter("numa_hint_faults");
			get(row->addr + at);
			if (vm_counter("numa_hint_faults") == before ||
			    hinted[at / step])
				continue;
			hinted[at / step] = true;
			left--;
		}
	}
}

static void numa_hint(struct row *row)
{
	pin_to(1);
	arm(row);
	populate(row);
	move_to(row, nodes[row->scenario->arg]);
	take_hints(row);
	check_node(row, nodes[1]);
}

/* Somebody holds a reference to each page, so that it cannot be moved. */
static void numa_hint_held(struct row *row)
{
	size_t step = row->mem->flags & M_THP ? pmd_size : row->stride, at;
	struct iovec iov = { .iov_len = page_size };
	int pipes[2];

	pin_to(1);
	arm(row);
	populate(row);
	move_to(row, nodes[0]);
	if (pipe(pipes) || fcntl(pipes[1], F_SETPIPE_SZ, SMALL_PAGES * page_size) < 0)
		fail("pipe: %s", strerror(errno));
	for (at = 0; at < row->len; at += step) {
		iov.iov_base = row->addr + at;
		if (vmsplice(pipes[1], &iov, 1, SPLICE_F_NONBLOCK) != (ssize_t)page_size)
			skip("vmsplice: %s", strerror(errno));
	}
	take_hints(row);
	check_node(row, nodes[0]);
}

static void fork_and_go_on(struct row *row)
{
	pid_t pid;

	arm(row);
	populate(row);
	pid = fork();
	if (!pid) {
		pause();
		_exit(0);
	}
	if (pid < 0)
		fail("fork: %s", strerror(errno));
	row->faults = count_all(row);
	row->counted = true;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void fork_and_leave(struct row *row)
{
	int status;
	pid_t pid;

	arm(row);
	populate(row);
	pid = fork();
	if (!pid) {
		report->faults[row->registered] = count_all(row);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		fail("the child did not get through");
	row->faults = report->faults[row->registered];
	row->counted = true;
}

static void move_mapping(struct row *row)
{
	size_t align = pmd_size > huge_size ? pmd_size : huge_size;
	char *to;

	arm(row);
	populate(row);
	to = mremap(row->addr, row->len, row->len, MREMAP_MAYMOVE | MREMAP_FIXED,
		    reserve(row->len, align));
	if (to == MAP_FAILED)
		skip("mremap: %s", strerror(errno));
	row->addr = to;
}

static bool soft_dirty(struct row *row, int i)
{
	return pagemap_entry(row->addr + i * row->stride) & PM_SOFT_DIRTY;
}

static void track_soft_dirty(struct row *row)
{
	int i;

	arm(row);
	populate(row);
	if (!write_file("/proc/self/clear_refs", "4"))
		skip("no soft-dirty tracking: %s", strerror(errno));
	if (soft_dirty(row, 0))
		skip("no soft-dirty tracking");
	if (row->scenario->arg != PROT_WRITE) {
		set_prot(row, row->scenario->arg);
		set_prot(row, PROT_READ | PROT_WRITE);
	}
	for (i = 0; i < row->nr; i++)
		if (soft_dirty(row, i))
			fail("page %d is soft-dirty before the write", i);
	row->faults = count_all(row);
	row->counted = true;
	for (i = 0; i < row->nr; i++)
		if (!soft_dirty(row, i))
			fail("page %d is not soft-dirty after the write", i);
}

/*
 * The tables
 */

static const struct memory memories[] = {
	{ "anon",		M_PRIVATE },
	{ "shared-anon",	0 },
	{ "memfd",		M_MEMFD },
	{ "tmpfs",		M_TMPFS },
	{ "shmem-thp",		M_MEMFD | M_THP },
	{ "hugetlb-shared",	M_MEMFD | M_HUGETLB },
	{ "hugetlb-private",	M_MEMFD | M_HUGETLB | M_PRIVATE },
	{ "file",		M_FS },
};

static const struct mode modes[] = {
	{ .name = "sync" },
	{ .name = "async", .async = true },
};

static const struct scenario scenarios[] = {
	{ .name = "read", .run = nothing },
	{ .name = "mprotect_read_clean", .run = mprotect_and_back, .arg = PROT_READ },
	{ .name = "mprotect_read_dirty", .flags = S_DIRTY,
	  .run = mprotect_and_back, .arg = PROT_READ },
	{ .name = "mprotect_none_clean", .run = mprotect_and_back, .arg = PROT_NONE },
	{ .name = "mprotect_none_dirty", .flags = S_DIRTY,
	  .run = mprotect_and_back, .arg = PROT_NONE },
	{ .name = "unprotect_clean", .run = protect_unprotect },
	{ .name = "unprotect_dirty", .flags = S_DIRTY, .run = protect_unprotect },
	{ .name = "never_protected_clean", .run = only_unprotect },
	{ .name = "never_protected_dirty", .flags = S_DIRTY, .run = only_unprotect },
	{ .name = "resolve_event", .flags = S_DIRTY | S_SYNC, .run = resolve_events },
	{ .name = "resolve_event_clean", .flags = S_SYNC, .run = resolve_events },
	{ .name = "unregister_clean", .run = unregister },
	{ .name = "unregister_dirty", .flags = S_DIRTY, .run = unregister },
	{ .name = "protect_unregister_clean", .run = protect_unregister },
	{ .name = "protect_unregister_dirty", .flags = S_DIRTY, .run = protect_unregister },
	{ .name = "protect_close_clean", .run = protect_close },
	{ .name = "protect_close_dirty", .flags = S_DIRTY, .run = protect_close },
	{ .name = "migrate_clean", .flags = S_NODES, .run = migrate },
	{ .name = "migrate_dirty", .flags = S_NODES | S_DIRTY, .run = migrate },
	{ .name = "migrate_late_clean", .flags = S_NODES, .run = migrate_late },
	{ .name = "mprotect_migrate_clean", .flags = S_NODES, .run = mprotect_migrate },
	{ .name = "mprotect_migrate_dirty", .flags = S_NODES | S_DIRTY,
	  .run = mprotect_migrate },
	{ .name = "numa_hint_clean", .flags = S_NODES | S_HINTS, .run = numa_hint, .arg = 0 },
	{ .name = "numa_hint_dirty", .flags = S_NODES | S_HINTS | S_DIRTY,
	  .run = numa_hint, .arg = 0 },
	{ .name = "numa_hint_local_clean", .flags = S_NODES | S_HINTS,
	  .run = numa_hint, .arg = 1 },
	{ .name = "numa_hint_local_dirty", .flags = S_NODES | S_HINTS | S_DIRTY,
	  .run = numa_hint, .arg = 1 },
	{ .name = "numa_hint_held_clean", .flags = S_NODES | S_HINTS,
	  .run = numa_hint_held },
	{ .name = "numa_hint_held_dirty", .flags = S_NODES | S_HINTS | S_DIRTY,
	  .run = numa_hint_held },
	{ .name = "fork_parent_clean", .run = fork_and_go_on },
	{ .name = "fork_parent_dirty", .flags = S_DIRTY, .run = fork_and_go_on },
	{ .name = "fork_child", .flags = S_DIRTY, .run = fork_and_leave },
	{ .name = "mremap_clean", .run = move_mapping },
	{ .name = "mremap_dirty", .flags = S_DIRTY, .run = move_mapping },
	{ .name = "async_populated", .flags = S_DIRTY | S_ASYNC | S_NOTICED,
	  .run = written_twice },
	{ .name = "async_populated_clean", .flags = S_ASYNC | S_NOTICED, .run = written_twice },
	{ .name = "async_untouched", .flags = S_ASYNC | S_FIRST_TOUCH, .run = first_touch },
	{ .name = "soft_dirty", .flags = S_DIRTY | S_SOFT_DIRTY,
	  .run = track_soft_dirty, .arg = PROT_WRITE },
	{ .name = "soft_dirty_clean", .flags = S_SOFT_DIRTY,
	  .run = track_soft_dirty, .arg = PROT_WRITE },
	{ .name = "soft_dirty_mprotect", .flags = S_DIRTY | S_SOFT_DIRTY,
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
	if (mem->flags & M_FS && !mode->async)
		return "userfaultfd takes files only in WP_ASYNC mode";
	if (mem->flags & M_HUGETLB && scenario->flags & (S_HINTS | S_SOFT_DIRTY))
		return "not for hugetlb";
	if (mem->flags & M_FS && scenario->flags & S_HINTS &&
	    scenario->flags & S_DIRTY)
		return "NUMA balancing does not look at dirty pages of files";
	if (mem->flags & M_PRIVATE && !(mem->flags & M_HUGETLB) &&
	    scenario->flags & S_NODES && !(scenario->flags & S_DIRTY))
		return "the zero page is on no node";
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
	create(row);
	row->scenario->run(row);
	if (!row->counted)
		row->faults = count_all(row);
	if (row->scenario->flags & S_NOTICED && row->registered)
		row->noticed = row->nr;
	if (row->scenario->flags & S_FIRST_TOUCH && row->registered) {
		int i;

		for (i = 0; i < row->nr; i++)
			if (scan_written(row->addr + i * row->stride) != 1)
				fail("page %d is not reported as written", i);
	}
	report->faults[row->registered] = row->faults;
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
	/* rseq must not be told of another CPU while faults are counted */
	if (nr_nodes)
		pin_to(0);
	if (scenario->flags & S_NODES && nr_nodes < 2)
		skip("needs two nodes with memory and a CPU");
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap_fd < 0)
		fail("no /proc/self/pagemap: %s", strerror(errno));
	scratch = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* without a second one, hinting passes over private memory */
	if (scratch == MAP_FAILED || pthread_create(&thread, NULL, idle, NULL))
		fail("cannot start a thread");
	run_once(&rows[0]);
	run_once(&rows[1]);
	report->outcome = DONE;
	_exit(0);
}

static void set_knobs(const struct scenario *scenario, const struct memory *mem)
{
	char path[128];
	unsigned int i;

	set_knob(NUMAB_ON, "0");
	set_knob(THP "shmem_enabled", "advise");
	snprintf(path, sizeof(path), THP "hugepages-%zukB/shmem_enabled",
		 pmd_size >> 10);
	set_knob(path, "inherit");
	if (mem->flags & M_HUGETLB)
		for (i = 0; i < (unsigned int)nr_nodes; i++) {
			snprintf(path, sizeof(path),
				 NODES "node%d/hugepages/hugepages-%zukB/nr_hugepages",
				 nodes[i], huge_size >> 10);
			set_knob(path, "10");
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
	long limit = unreg + report->noticed, nr = report->nr;
	bool keep = mem->flags & M_FS || scenario->flags & S_SOFT_DIRTY;
	bool ok;

	/* A huge page comes with one fault, its protected parts with one each. */
	if (scenario->flags & S_FIRST_TOUCH && limit < nr)
		limit = nr;
	ok = reg <= limit && !(keep && reg < unreg);
	ksft_print_msg("%s: %.3f %.3f (limit %.3f) faults a page\n", name,
		       (double)unreg / nr, (double)reg / nr, (double)limit / nr);
	if (ok)
		ksft_test_result_pass("%s\n", name);
	else
		ksft_test_result_fail("%s # %ld faults for %ld pages, %ld without userfaultfd%s\n",
				      name, reg, nr, unreg,
				      reg < limit ? ": too few" : "");
}

static void do_row(const char *name, const struct scenario *scenario,
		   const struct memory *mem, const struct mode *mode)
{
	int status;
	pid_t pid;

	memset(report, 0, sizeof(*report));
	set_knobs(scenario, mem);
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
				      "hang" : "crash");
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
	vmstat_fd = open("/proc/vmstat", O_RDONLY | O_CLOEXEC);
	report = mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (vmstat_fd < 0 || report == MAP_FAILED)
		ksft_exit_skip("needs /proc/vmstat\n");
	atexit(restore_knobs);

	nr = each_row(argc, argv, false);
	if (!nr)
		ksft_exit_skip("no row has that in its name\n");
	ksft_set_plan(nr);
	each_row(argc, argv, true);
	ksft_finished();
}
