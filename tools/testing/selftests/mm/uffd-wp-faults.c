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
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "uffd-wp-memory.h"
#include "uffd-wp-path.h"
#include "uffd-wp-row.h"

#define EVENT_MS	5000
#define SMALL_PAGES	64
#define HUGE_PAGES	4

#define FAIL_PAGE	"/sys/kernel/debug/fail_page_alloc/"
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
	void (*run)(struct row *row);
	int arg;
	uint64_t features;	/* of userfaultfd, in addition */
	uint64_t more;		/* what else it is registered for, later */
};

struct row {
	const struct scenario *scenario;
	struct memory mem;
	unsigned int flags;	/* of the kind of memory */
	bool registered;	/* second run */

	int nr;			/* writes */
	int go, done;		/* tell the child to write, and who waits for it */
	pid_t child;
	struct uffd_msg event;	/* of fork() or mremap() */
	bool notice;		/* the writes have to be noticed */
	long noticed;
};

/* Faults without and with userfaultfd; shared, as the child may be who writes. */
static long *counted;
static char *scratch;

/*
 * Counting
 */

static void put(char *addr, char value)
{
	__atomic_store_n(addr, value, __ATOMIC_RELAXED);
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
		addr = practice ? scratch : row->mem.addr;
		stride = practice ? 8 : row->mem.page;
		nr = practice ? 2 : row->nr;
		touch_rseq();
		before = faults_of_thread();
		for (i = 0; i < nr; i++) {
			if (row->scenario->flags & S_READS)
				touch(addr + i * stride);
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

	counted[row->registered] = count_once(row) + count_once(row);
	if (write(row->done, &one, 8) != 8)
		fail("nobody waits for the writes");
}

/*
 * Memory
 */

static void create(struct row *row)
{
	struct memory *mem = &row->mem;

	mem->len = row->flags & M_HUGETLB ? HUGE_PAGES * huge_size :
		   row->flags & M_THP ? 2 * pmd_size : SMALL_PAGES * page_size;
	map_memory(mem, PROT_READ | PROT_WRITE);
	row->nr = mem->nr;
	row->go = eventfd(0, EFD_CLOEXEC);
	row->done = eventfd(0, EFD_CLOEXEC);
	fail_if(row->go < 0 || row->done < 0, "eventfd");
	if (row->flags & M_DISK ||
	    (row->flags & M_LARGE && !(row->flags & M_ANON) &&
	     !(row->scenario->flags & S_UNTOUCHED)))
		fill_file(mem);
}

static void populate(struct row *row)
{
	bool dirty = row->scenario->flags & S_DIRTY;
	int i;

	for (i = 0; i < row->nr; i++) {
		char *at = row->mem.addr + i * row->mem.page;

		if (dirty)
			put(at, 1);
		else
			touch(at);
		if (!(pagemap_entry(at) & PM_PRESENT))
			fail("page %d is not there after it was touched", i);
	}
	prove_mapping(&row->mem);
	for (i = 0; row->flags & M_LARGE && i < row->nr; i++)
		prove_page(&row->mem, target(&row->mem, i));
}

/*
 * userfaultfd: these do nothing in the first run.
 */

static void must_register(struct row *row, uint64_t mode)
{
	fail_if(row->registered &&
		register_range(row->mem.uffd, row->mem.addr, row->mem.len, mode),
		"UFFDIO_REGISTER");
}

static void arm_row(struct row *row)
{
	uint64_t features = row->scenario->features;

	if (row->scenario->more == UFFDIO_REGISTER_MODE_MINOR)
		features |= UFFD_FEATURE_MINOR_HUGETLBFS | UFFD_FEATURE_MINOR_SHMEM;
	if (row->registered)
		arm(&row->mem, features);
}

static void unregister(struct row *row)
{
	fail_if(row->registered &&
		uffd_unregister(row->mem.uffd, row->mem.addr, row->mem.len),
		"UFFDIO_UNREGISTER");
}

static void disarm(struct row *row)
{
	if (row->registered)
		close(row->mem.uffd);
	row->mem.uffd = -1;
}

static void protect_part(struct row *row, size_t from, size_t len, bool on)
{
	size_t at;

	if (!row->registered)
		return;
	set_protection(&row->mem, from, len, on);
	for (at = from; at < from + len; at += row->mem.page)
		if (on != !!(pagemap_entry(row->mem.addr + at) & PM_UFFD_WP))
			fail("the page at %#zx is %sprotected", at, on ? "not " : "");
}

static void protect(struct row *row)
{
	protect_part(row, 0, row->mem.len, true);
}

static void unprotect(struct row *row)
{
	protect_part(row, 0, row->mem.len, false);
}

/* Have the kernel map a page that is missing, or that only the file has. */
static void fill_page(struct row *row, size_t at, bool wp)
{
	struct uffdio_continue minor = {
		.range.start = (uintptr_t)row->mem.addr + at,
		.range.len = row->mem.page,
		.mode = wp ? UFFDIO_CONTINUE_MODE_WP : 0,
	};
	struct uffdio_copy missing = {
		.dst = (uintptr_t)row->mem.addr + at,
		.src = (uintptr_t)scratch,
		.len = row->mem.page,
		.mode = wp ? UFFDIO_COPY_MODE_WP : 0,
	};

	bool by_file = row->scenario->more == UFFDIO_REGISTER_MODE_MINOR;

	if (!(by_file ? ioctl(row->mem.uffd, UFFDIO_CONTINUE, &minor) :
			ioctl(row->mem.uffd, UFFDIO_COPY, &missing)))
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

	if (read(row->mem.uffd, &msg, sizeof(msg)) != sizeof(msg) ||
	    msg.event != UFFD_EVENT_PAGEFAULT)
		fail("spurious: not the event of a write");
	at = (char *)(uintptr_t)msg.arg.pagefault.address - row->mem.addr;
	wp = msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP;
	if (at >= row->mem.len)
		fail("spurious: an event for another range");
	if (row->scenario->flags & S_MISSING)
		ok = !wp && !(pagemap_entry(row->mem.addr + at) & PM_PRESENT);
	else
		ok = wp && row->notice && pagemap_entry(row->mem.addr + at) & PM_UFFD_WP;
	if (!ok)
		fail("spurious: an event for the page at %#zx", at);
	row->noticed++;
	if (wp)
		protect_part(row, at, row->mem.page, false);
	else
		fill_page(row, at, false);
}

/* Where there are no events, pagemap tells. */
static void check_written(struct row *row, bool written)
{
	int i;

	for (i = 0; i < row->nr; i++) {
		char *at = row->mem.addr + i * row->mem.page;

		if (!!(pagemap_entry(at) & PM_UFFD_WP) == written ||
		    scan_written(at) != written)
			fail("lost: page %d is %sreported as written %s the write",
			     i, written ? "not " : "", written ? "after" : "before");
	}
}

static void write_all(struct row *row)
{
	bool scan = row->notice && row->mem.mode->async &&
		    !(row->scenario->flags & S_MISSING);
	struct pollfd fds[2] = {
		{ .fd = row->done, .events = POLLIN },
		{ .fd = row->mem.uffd, .events = POLLIN },
	};
	uint64_t one = 1;

	if (scan)
		check_written(row, false);
	if (row->scenario->flags & S_CHILD) {
		if (write(row->go, &one, 8) != 8)
			fail("cannot wake the child");
	} else {
		start_thread(writer, row);
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

static void mprotect_row(struct row *row)
{
	mprotect_and_back(&row->mem, row->scenario->arg);
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
	protect_part(row, row->nr * row->mem.page, row->mem.page, true);
}

/* PAGEMAP_SCAN protects huge pages in one piece; then a page of each is split off. */
static void scan_neighbour(struct row *row)
{
	row->nr--;
	if (row->registered &&
	    scan_protect(row->mem.addr + row->nr * row->mem.page, row->mem.page) < 0)
		fail("PAGEMAP_SCAN: %s", strerror(errno));
}

static void scan_and_protect(struct row *row)
{
	size_t at;

	if (row->registered && scan_protect(row->mem.addr, row->mem.len) < 0)
		fail("PAGEMAP_SCAN: %s", strerror(errno));
	for (at = 0; at < row->mem.len; at += row->mem.folio)
		protect_part(row, at, row->mem.page, true);
}

/* Each page is inaccessible, until the first access resolves that. */
static void protect_accesses(struct row *row)
{
	unregister(row);
	must_register(row, UFFDIO_REGISTER_MODE_RWP);
	fail_if(row->registered &&
		rwprotect_range(row->mem.uffd, row->mem.addr, row->mem.len, true),
		"UFFDIO_RWPROTECT");
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
	arm_row(row);
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
	int err = row->registered ?
		  register_range(row->mem.uffd, row->mem.addr, row->mem.len,
				 UFFDIO_REGISTER_MODE_MISSING) : 0;

	if (err && err != EBUSY)
		fail("UFFDIO_REGISTER: %s", strerror(err));
	if (!err)
		row->notice = false;
}

/* Shared pages stay in the file. */
static void zap_row(struct row *row)
{
	zap(&row->mem);
}

static void zap_and_read(struct row *row)
{
	zap_row(row);
	populate(row);
}

/* The pages come through the userfaultfd, protected or not. */
static void fill(struct row *row)
{
	size_t at;

	if (!(row->scenario->flags & S_UNTOUCHED))
		zap_row(row);
	register_more(row);
	if (!row->registered)
		populate(row);
	for (at = 0; row->registered && at < row->mem.len; at += row->mem.page)
		fill_page(row, at, row->notice);
}

/*
 * Scenarios: migration and NUMA hinting
 */

static void migrate(struct row *row)
{
	move_pages_to(&row->mem, nodes[0]);
	move_pages_to(&row->mem, nodes[1]);
}

/* An entry that is not writable when the page is moved, for no reason left */
static void mprotect_migrate(struct row *row)
{
	move_pages_to(&row->mem, nodes[0]);
	set_prot(&row->mem, PROT_READ);
	move_pages_to(&row->mem, nodes[1]);
	set_prot(&row->mem, PROT_READ | PROT_WRITE);
	move_pages_to(&row->mem, nodes[0]);
}

static void numa_hint(struct row *row)
{
	pin_to(0, 1);
	move_pages_to(&row->mem, nodes[row->scenario->arg]);
	take_hints(&row->mem, NULL);
	must_be_on(&row->mem, nodes[1], "hinting");
}

/*
 * There is no page to move it to: its entry is not even replaced. Only what the
 * task allocates without waiting fails, and that is not needed otherwise.
 */
static void numa_hint_nomem(struct row *row)
{
	long before = read_long(FAIL_PAGE "times");

	pin_to(0, 1);
	move_pages_to(&row->mem, nodes[0]);
	if (!write_text("/proc/thread-self/make-it-fail", "1"))
		skip("no failing allocations: %s", strerror(errno));
	take_hints(&row->mem, NULL);
	write_text("/proc/thread-self/make-it-fail", "0");
	must_be_on(&row->mem, nodes[0], "hinting");
	if (before - read_long(FAIL_PAGE "times") < (long)(row->mem.len / row->mem.folio))
		again("nobody tried to move the pages");
}

/* Somebody holds a reference to each page, so that it cannot be moved. */
static void numa_hint_held(struct row *row)
{
	size_t at;
	struct iovec iov = { .iov_len = page_size };
	long long before;
	int pipes[2];

	pin_to(0, 1);
	move_pages_to(&row->mem, nodes[0]);
	if (pipe(pipes) || fcntl(pipes[1], F_SETPIPE_SZ, SMALL_PAGES * page_size) < 0)
		fail("pipe: %s", strerror(errno));
	for (at = 0; at < row->mem.len; at += row->mem.folio) {
		iov.iov_base = row->mem.addr + at;
		if (vmsplice(pipes[1], &iov, 1, SPLICE_F_NONBLOCK) != (ssize_t)page_size)
			skip("vmsplice: %s", strerror(errno));
	}
	before = vm_counter("pgmigrate_fail");
	take_hints(&row->mem, NULL);
	must_be_on(&row->mem, nodes[0], "hinting");
	if (vm_counter("pgmigrate_fail") - before < (long long)(row->mem.len / row->mem.folio))
		again("nobody tried to move the pages");
}

/*
 * Scenarios: fork() and mremap(). They wait until somebody has read their event.
 */

static void *read_event(void *arg)
{
	struct row *row = arg;
	struct pollfd fd = { .fd = row->mem.uffd, .events = POLLIN };

	if (poll(&fd, 1, EVENT_MS) != 1 ||
	    read(row->mem.uffd, &row->event, sizeof(row->event)) != sizeof(row->event))
		fail("lost: no event of fork() or mremap()");
	return NULL;
}

static bool start_reader(struct row *row, pthread_t *reader)
{
	if (!row->registered || !row->scenario->features)
		return false;
	*reader = start_thread(read_event, row);
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
	fail_if(row->child < 0, "fork");
	if (event) {
		pthread_join(reader, NULL);
		if (row->event.event != UFFD_EVENT_FORK)
			fail("spurious: not the event of fork()");
		if (child_writes)
			row->mem.uffd = row->event.arg.fork.ufd;
	}
	if (child_writes)
		look_at(row->child);
}

/* A page that the child shares must not become writable without a copy. */
static void fork_and_mprotect(struct row *row)
{
	fork_mapping(row);
	mprotect_row(row);
}

static void move_mapping(struct row *row)
{
	char *to = reserve(row->mem.len);
	pthread_t reader;
	bool event = start_reader(row, &reader);

	if (mremap(row->mem.addr, row->mem.len, row->mem.len, MREMAP_MAYMOVE | MREMAP_FIXED,
		   to) == MAP_FAILED)
		skip("mremap: %s", strerror(errno));
	if (event) {
		pthread_join(reader, NULL);
		if (row->event.event != UFFD_EVENT_REMAP ||
		    row->event.arg.remap.from != (uintptr_t)row->mem.addr ||
		    row->event.arg.remap.to != (uintptr_t)to ||
		    row->event.arg.remap.len != row->mem.len)
			fail("spurious: not the event of mremap()");
	}
	row->mem.addr = to;
}

/*
 * Scenarios: soft-dirty tracking
 */

/* Of a page of hugetlb, only PAGEMAP_SCAN says it. */
static bool is_soft_dirty(const struct row *row, const char *p)
{
	struct page_region region;
	struct pm_scan_arg arg;
	int n;

	if (!(row->flags & M_HUGETLB))
		return pagemap_entry(p) & PM_SOFT_DIRTY;

	arg = scan_arg(p, row->mem.page, 0, &region, 1);
	arg.category_mask = PAGE_IS_SOFT_DIRTY;
	arg.return_mask = PAGE_IS_SOFT_DIRTY;
	n = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
	fail_if(n < 0, "PAGEMAP_SCAN");
	return n;
}

static void check_soft_dirty(struct row *row, bool dirty)
{
	int i;

	for (i = 0; i < row->nr; i++)
		if (is_soft_dirty(row, row->mem.addr + i * row->mem.page) != dirty)
			fail("page %d is %ssoft-dirty %s the write", i,
			     dirty ? "not " : "", dirty ? "after" : "before");
}

static void track_soft_dirty(struct row *row)
{
	if (!(pagemap_entry(row->mem.addr) & PM_SOFT_DIRTY) ||
	    !write_text("/proc/self/clear_refs", "4") ||
	    pagemap_entry(row->mem.addr) & PM_SOFT_DIRTY)
		skip("no soft-dirty tracking");
	if (row->scenario->arg)
		mprotect_row(row);
	check_soft_dirty(row, false);
}

/*
 * The tables
 */

static const char * const memories[] = {
	"anon", "anon-thp", "anon-mthp", "shared-anon", "memfd", "tmpfs", "shmem-thp",
	"shmem-mthp", "hugetlb-shared", "hugetlb-private", "file",
};

static const char * const modes[] = { "sync", "async" };

#define MISSING		UFFDIO_REGISTER_MODE_MISSING
#define MINOR		UFFDIO_REGISTER_MODE_MINOR
#define FORK		UFFD_FEATURE_EVENT_FORK
#define REMAP		UFFD_FEATURE_EVENT_REMAP

static const struct scenario scenarios[] = {
	{ "read" },
	{ "read_in", S_READS, zap_row },
	{ "read_in_write", 0, zap_and_read },
	/* private memory: of new pages */
	{ "first_write", S_DIRTY, zap_row },
	{ "mprotect_read_clean", 0, mprotect_row, .arg = PROT_READ },
	{ "mprotect_read_dirty", S_DIRTY | S_FREE, mprotect_row, .arg = PROT_READ },
	{ "mprotect_none_clean", 0, mprotect_row, .arg = PROT_NONE },
	{ "mprotect_none_dirty", S_DIRTY | S_FREE, mprotect_row, .arg = PROT_NONE },
	{ "unprotect_clean", S_PROTECT, unprotect },
	{ "unprotect_dirty", S_PROTECT | S_DIRTY, unprotect },
	{ "never_protected_clean", S_LATE, unprotect },
	{ "never_protected_dirty", S_LATE | S_DIRTY, unprotect },
	{ "protect_neighbour_clean", 0, protect_neighbour },
	{ "protect_neighbour_dirty", S_DIRTY, protect_neighbour },
	{ "resolve_event", S_SYNC | S_KEPT },
	{ "resolve_event_clean", S_SYNC | S_PROTECT | S_NOTICED },

	{ "unregister_clean", 0, unregister },
	{ "unregister_dirty", S_DIRTY, unregister },
	{ "unregister_read", S_UNTOUCHED, unregister_and_read },
	{ "protect_unregister_clean", S_PROTECT, unregister },
	{ "protect_unregister_dirty", S_PROTECT | S_DIRTY, unregister },
	{ "protect_close_clean", S_PROTECT, disarm },
	{ "protect_close_dirty", S_PROTECT | S_DIRTY, disarm },

	/* registered once more, after what is protected was dropped */
	{ "register_again_clean", S_PROTECT, register_again },
	{ "register_again_dirty", S_PROTECT | S_DIRTY, register_again },
	{ "register_again_protect", S_KEPT, register_again },
	{ "reopen_clean", S_PROTECT, arm_again },
	{ "reopen_dirty", S_PROTECT | S_DIRTY, arm_again },
	{ "reopen_protect", S_KEPT, arm_again },
	/* registered once more: for the same, for more, for something else */
	{ "register_twice_clean", 0, register_more },
	{ "register_twice_dirty", S_DIRTY, register_more },
	{ "register_twice_protected", S_KEPT, register_more },
	{ "register_missing_clean", 0, register_more, .more = MISSING },
	{ "register_missing_dirty", S_DIRTY, register_more, .more = MISSING },
	{ "register_missing_protected", S_KEPT, register_more, .more = MISSING },
	{ "register_minor_clean", 0, register_more, .more = MINOR },
	{ "register_minor_dirty", S_DIRTY, register_more, .more = MINOR },
	{ "register_minor_protected", S_KEPT, register_more, .more = MINOR },
	{ "register_less_protected", S_KEPT, register_less, .more = MISSING },
	/* the same before there are pages, which then come through userfaultfd */
	{ "copy", S_UNTOUCHED | S_DIRTY, fill, .more = MISSING },
	{ "copy_protected", S_UNTOUCHED | S_DIRTY | S_NOTICED, fill, .more = MISSING },
	{ "copy_on_event", S_UNTOUCHED | S_NOTICED | S_MISSING, register_more, .more = MISSING },
	{ "continue", S_DIRTY, fill, .more = MINOR },
	{ "continue_protected", S_DIRTY | S_NOTICED, fill, .more = MINOR },

	{ "migrate_clean", S_NODES, migrate },
	{ "migrate_dirty", S_NODES | S_DIRTY, migrate },
	{ "migrate_late_clean", S_NODES | S_LATE, migrate },
	{ "mprotect_migrate_clean", S_NODES, mprotect_migrate },
	{ "mprotect_migrate_dirty", S_NODES | S_DIRTY, mprotect_migrate },
	{ "numa_hint_clean", S_NODES | S_HINTS, numa_hint },
	{ "numa_hint_dirty", S_NODES | S_HINTS | S_DIRTY, numa_hint },
	{ "numa_hint_local_clean", S_NODES | S_HINTS, numa_hint, .arg = 1 },
	{ "numa_hint_local_dirty", S_NODES | S_HINTS | S_DIRTY, numa_hint, .arg = 1 },
	{ "numa_hint_nomem_clean", S_NODES | S_HINTS | S_NOMEM, numa_hint_nomem },
	{ "numa_hint_nomem_dirty", S_NODES | S_HINTS | S_NOMEM | S_DIRTY, numa_hint_nomem },
	{ "numa_hint_held_clean", S_NODES | S_HINTS, numa_hint_held },
	{ "numa_hint_held_dirty", S_NODES | S_HINTS | S_DIRTY, numa_hint_held },

	/* the child is not registered, the mapping that was moved neither */
	{ "fork_parent_clean", 0, fork_mapping },
	{ "fork_parent_dirty", S_DIRTY, fork_mapping },
	{ "fork_parent_protected", S_KEPT, fork_mapping },
	{ "fork_mprotect", S_DIRTY | S_COPIES, fork_and_mprotect, .arg = PROT_READ },
	{ "fork_child", S_CHILD | S_DIRTY, fork_mapping },
	{ "fork_child_dropped", S_CHILD | S_PROTECT | S_DIRTY, fork_mapping },
	{ "mremap_clean", 0, move_mapping },
	{ "mremap_dirty", S_DIRTY, move_mapping },
	{ "mremap_dropped", S_PROTECT | S_DIRTY, move_mapping },
	/* both are if the event was asked for */
	{ "fork_event_parent_clean", 0, fork_mapping, .features = FORK },
	{ "fork_event_parent_dirty", S_DIRTY, fork_mapping, .features = FORK },
	{ "fork_event_parent_protected", S_KEPT, fork_mapping, .features = FORK },
	{ "fork_event_child_clean", S_CHILD, fork_mapping, .features = FORK },
	{ "fork_event_child_dirty", S_CHILD | S_DIRTY, fork_mapping, .features = FORK },
	{ "fork_event_child_protected", S_CHILD | S_KEPT, fork_mapping, .features = FORK },
	{ "mremap_event_clean", 0, move_mapping, .features = REMAP },
	{ "mremap_event_dirty", S_DIRTY, move_mapping, .features = REMAP },
	{ "mremap_event_protected", S_KEPT, move_mapping, .features = REMAP },

	/* a fault that maps the page comes before the one that is reported */
	{ "sync_untouched", S_SYNC | S_UNTOUCHED | S_PROTECT | S_NOTICED | S_TWICE, NULL,
	  .features = UFFD_FEATURE_WP_UNPOPULATED },
	{ "async_populated", S_ASYNC | S_KEPT },
	{ "async_populated_clean", S_ASYNC | S_PROTECT | S_NOTICED },
	{ "async_scan_protect", S_ASYNC | S_DIRTY | S_NOTICED, scan_and_protect },
	{ "async_scan_neighbour", S_ASYNC | S_DIRTY, scan_neighbour },
	{ "async_untouched", S_ASYNC | S_UNTOUCHED | S_PROTECT | S_NOTICED },
	{ "rwp_async", S_ASYNC | S_DIRTY | S_MAY_FAULT, protect_accesses,
	  .features = UFFD_FEATURE_RWP | UFFD_FEATURE_RWP_ASYNC },
	{ "soft_dirty", S_SOFT_DIRTY | S_DIRTY, track_soft_dirty },
	{ "soft_dirty_clean", S_SOFT_DIRTY, track_soft_dirty },
	{ "soft_dirty_mprotect", S_SOFT_DIRTY | S_DIRTY, track_soft_dirty, .arg = PROT_READ },
	{ "soft_dirty_mprotect_clean", S_SOFT_DIRTY, track_soft_dirty, .arg = PROT_READ },
};

/* Why there is no such row */
static const char *impossible(const struct row_id *id)
{
	const struct scenario *scenario = id->of[0];
	const struct kind *kind = kind_named(id->word[1]);
	bool async = mode_named(id->word[2])->async;
	bool anon = is_private_anon(kind);

	if (scenario->flags & S_SYNC && async)
		return "there are no events in WP_ASYNC mode";
	if (scenario->flags & S_ASYNC && !async)
		return "this is WP_ASYNC mode only";
	if (kind->flags & M_DISK &&
	    (!async || scenario->more || scenario->features & UFFD_FEATURE_RWP))
		return "userfaultfd takes files only in WP_ASYNC mode, and for nothing else";
	if (kind->flags & M_HUGETLB && scenario->flags & S_HINTS)
		return "not for hugetlb";
	if (kind->flags & M_HUGETLB && scenario->flags & S_SOFT_DIRTY &&
	    scenario->flags & S_DIRTY)
		return "clear_refs leaves the entries of hugetlb as they are";
	if (kind->flags & M_HUGETLB && scenario->flags & S_SOFT_DIRTY &&
	    !(kind->flags & M_PRIVATE))
		return "shared hugetlb takes no fault that could make it soft-dirty";
	if (kind->flags & M_MTHP && scenario->flags & S_SOFT_DIRTY && scenario->arg)
		return "mprotect() makes soft-dirty what it changes in a batch";
	if (kind->flags & M_DISK && scenario->flags & S_HINTS &&
	    scenario->flags & S_DIRTY)
		return "NUMA balancing does not look at dirty pages of files";
	if (anon && scenario->flags & S_NODES && !(scenario->flags & S_DIRTY))
		return "the zero page is on no node";
	if (anon && kind->flags & M_LARGE &&
	    (!(scenario->flags & S_DIRTY) || scenario->flags & S_UNTOUCHED))
		return "only a write makes a large folio";
	if (kind->flags & M_LARGE && scenario->flags & S_UNTOUCHED && scenario->more)
		return "UFFDIO_COPY makes no large folio";
	if (scenario->flags & S_COPIES &&
	    (!(kind->flags & M_PRIVATE) || kind->flags & M_THP))
		return "nothing is copied, or not page by page";
	if (kind->flags & M_PRIVATE && scenario->more == UFFDIO_REGISTER_MODE_MINOR)
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
	bool late = flags & S_LATE || (row->flags & M_MTHP && row->flags & M_ANON);

	step(row->registered ? "with userfaultfd" : "without userfaultfd");
	/* rseq must not be told of another CPU while faults are counted */
	pin_to(0, 0);
	look_at(getpid());
	create(row);
	if (!late)
		arm_row(row);
	if (!(flags & S_UNTOUCHED))
		populate(row);
	if (late)
		arm_row(row);
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
}

static void set_knobs(const struct row_id *id)
{
	const struct scenario *scenario = id->of[0];

	set_memory_knobs(kind_named(id->word[1]));
	set_numa_knobs(scenario->flags & S_HINTS);
	if (scenario->flags & S_NOMEM) {
		set_knob(FAIL_PAGE "task-filter", "Y");
		set_knob(FAIL_PAGE "min-order", "0");
		set_knob(FAIL_PAGE "ignore-gfp-highmem", "N");
		set_knob(FAIL_PAGE "probability", "100");
		set_knob(FAIL_PAGE "interval", "1");
		set_knob(FAIL_PAGE "verbose", "0");
		set_knob(FAIL_PAGE "times", "1000000");
	}
}

static void judge(const struct row_id *id, const struct row *row)
{
	const unsigned int flags = row->scenario->flags;
	long unreg = counted[0], reg = counted[1], nr = row->nr;
	/* a write that has to be noticed may need its fault anyway */
	long limit = unreg > row->noticed ? unreg : row->noticed;
	bool keep = row->flags & M_DISK || flags & S_SOFT_DIRTY;

	if (flags & S_TWICE)
		limit = 2 * row->noticed;
	/* what was protected may lose that, and still not be writable */
	if (flags & S_MAY_FAULT && limit < nr)
		limit = nr;
	/* a child that is registered gets the dirty entries of its parent */
	if (flags & S_CHILD && row->scenario->features)
		keep = false;
	ksft_print_msg("%s: %.3f %.3f (limit %.3f) faults a page\n", id->name,
		       (double)unreg / nr, (double)reg / nr, (double)limit / nr);
	fflush(stdout);
	if (flags & S_COPIES && (reg < nr || unreg < nr))
		fail("%ld faults for %ld pages that are shared",
		     reg < unreg ? reg : unreg, nr);
	if (flags & S_FREE && !(row->flags & M_DISK) && unreg)
		fail("%ld faults for %ld pages without userfaultfd", unreg, nr);
	if (reg < row->noticed)
		fail("lost: %ld faults for %ld writes to be noticed", reg,
		     row->noticed);
	if (reg > limit || (keep && reg < unreg))
		fail("%ld faults for %ld pages, %ld without userfaultfd%s", reg, nr,
		     unreg, reg < limit ? ": too few" : "");
}

static void run_row(const struct row_id *id)
{
	const struct kind *kind = kind_named(id->word[1]);
	struct row row = { };
	int i;

	counted = mmap(NULL, page_size, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	scratch = mmap(NULL, huge_size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	fail_if(counted == MAP_FAILED || scratch == MAP_FAILED, "mmap");
	/* without a second thread, hinting passes over private memory */
	start_thread(idle, NULL);
	for (i = 0; i < 2; i++) {
		row = (struct row) {
			.scenario = id->of[0], .flags = kind->flags,
			.mem = { .kind = kind, .mode = mode_named(id->word[2]) },
			.registered = i,
		};
		if (row.scenario->flags & S_NODES)
			need_two_nodes();
		run_once(&row);
	}
	judge(id, &row);
}

static const struct test test = {
	.tables = { TABLE(scenarios), TABLE(memories), TABLE(modes) },
	.seconds = 20,
	.impossible = impossible,
	.setup = find_machine,
	.set_knobs = set_knobs,
	.run = run_row,
};

int main(int argc, char **argv)
{
	return run_test(&test, argc, argv);
}
