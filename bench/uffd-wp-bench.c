// SPDX-License-Identifier: GPL-2.0
/*
 * What uffd-wp costs, in faults and in instructions. In a guest whose clock
 * counts instructions (QEMU's -icount) both are exact: no other unit is needed,
 * and no statistics.
 *
 * Each line of the output is a row of the table: group, scenario, kind of memory,
 * whether it is registered, pages, faults, instructions. A row runs a few times,
 * each in a process of its own, and the cheapest run is told: what the others
 * have on top is a timer tick or a refilled cache of the allocators.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "uffd-wp-util.h"

#define RUNS		7
#define PAGES		1024
#define HUGE_PAGES	8
#define TRACKED		(64UL << 20)

#define PM_SOFT_DIRTY	BIT_ULL(55)
#define SCAN_WP		BIT(0)
#define SCAN_CHECK	BIT(1)

enum { ANON, MEMFD, SHMEM_THP, HUGETLB, FILE_BACKED, NR_KINDS };

static const char * const kind_names[] = {
	"anon", "memfd", "shmem-thp", "hugetlb-shared", "file",
};

enum group { FAULTS, TRACKING, OTHERS };

static const char * const group_names[] = { "faults", "tracking", "others" };

struct row {
	enum group group;
	const char *name;
	void (*run)(struct row *row);
	unsigned int kinds;
	int arg;
	/* of the run that goes on */
	int kind;
	bool registered;
	bool async;
	char *addr;
	size_t len, stride;
	long nr;
	int fd, uffd;
};

struct figures {
	long pages, faults;
	uint64_t instructions;
	char why_not[100];
};

static struct figures *figures;

static void __attribute__((noreturn, format(printf, 1, 2))) give_up(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(figures->why_not, sizeof(figures->why_not), fmt, args);
	va_end(args);
	_exit(1);
}

/*
 * Counting
 */

static uint64_t started;
static long faults_before;

/*
 * What is between 'o' and 'c' is what make profile looks at; 'e' ends a row. A NOP
 * with this displacement is nowhere else.
 */
#ifdef __x86_64__
#define mark(what)	asm volatile("nopl %c0(%%rax,%%rax)" :: "i" (0x70777500 | (what)) : "memory")
#else
#define mark(what)	do { } while (0)
#endif

/* Under -icount the time stamp counter goes up by one for each instruction. */
static uint64_t instructions(void)
{
#ifdef __x86_64__
	return __builtin_ia32_rdtsc();
#else
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
#endif
}

static long faults_so_far(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt + usage.ru_majflt;
}

static void start(void)
{
	/* What is touched in between must be there before. */
	memset(figures, 0, sizeof(*figures));
	instructions();
	faults_before = faults_so_far();
	mark('o');
	started = instructions();
}

static void stop(long pages)
{
	uint64_t now = instructions();

	mark('c');
	figures->instructions = now - started;
	figures->faults = faults_so_far() - faults_before;
	figures->pages = pages;
}

/*
 * Memory
 */

static char *map_row(struct row *row)
{
	bool huge = row->kind == HUGETLB, thp = row->kind == SHMEM_THP;
	size_t align = 2 * (pmd_size > huge_size ? pmd_size : huge_size);
	char *addr;

	row->stride = huge ? huge_size : page_size;
	if (!row->len)
		row->len = huge ? HUGE_PAGES * huge_size : thp ? 2 * pmd_size :
			   PAGES * page_size;
	row->nr = row->len / row->stride;
	row->fd = -1;
	if (row->kind == FILE_BACKED)
		row->fd = open(".", O_RDWR | O_TMPFILE, 0600);
	else if (row->kind != ANON)
		row->fd = memfd_create("bench", huge ? MFD_HUGETLB : 0);
	if (row->kind != ANON && (row->fd < 0 || ftruncate(row->fd, row->len)))
		give_up("no file: %s", strerror(errno));
	addr = mmap(NULL, row->len + align, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (addr == MAP_FAILED)
		give_up("no room");
	addr = (char *)(((uintptr_t)addr + align - 1) & ~(align - 1));
	addr = mmap(addr, row->len, PROT_READ | PROT_WRITE, MAP_FIXED |
		    (row->fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED),
		    row->fd, 0);
	if (addr == MAP_FAILED)
		give_up("mmap: %s", strerror(errno));
	if (thp)
		madvise(addr, row->len, MADV_HUGEPAGE);
	return addr;
}

static void read_all(struct row *row)
{
	long i;

	for (i = 0; i < row->nr; i++)
		(void)__atomic_load_n(row->addr + i * row->stride, __ATOMIC_RELAXED);
}

static void write_some(struct row *row, long nr)
{
	long i, step = row->nr / nr;

	for (i = 0; i < nr; i++)
		__atomic_store_n(row->addr + i * step * row->stride, 1, __ATOMIC_RELAXED);
}

static void write_all(struct row *row)
{
	write_some(row, row->nr);
}

/* The pages of a file are there before: what fills it is another matter. */
static void fill(struct row *row)
{
	char *view = mmap(NULL, row->len, PROT_READ | PROT_WRITE, MAP_SHARED, row->fd, 0);
	size_t at;

	if (view == MAP_FAILED)
		give_up("mmap: %s", strerror(errno));
	for (at = 0; at < row->len; at += row->stride)
		view[at] = 1;
	munmap(view, row->len);
	if (row->kind == FILE_BACKED && fsync(row->fd))
		give_up("fsync: %s", strerror(errno));
}

static void make(struct row *row)
{
	row->addr = map_row(row);
	if (row->kind == SHMEM_THP) {
		/* shmem maps no huge page anew in a VMA that is registered */
		write_all(row);
		if (smaps_bytes(row->addr, row->len, "ShmemPmdMapped") != row->len)
			give_up("no huge page");
		madvise(row->addr, row->len, MADV_DONTNEED);
	} else if (row->fd >= 0) {
		fill(row);
	}
}

/*
 * userfaultfd, for those rows that are registered
 */

static void arm(struct row *row)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
			    UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			    UFFD_FEATURE_WP_UNPOPULATED |
			    (row->async ? UFFD_FEATURE_WP_ASYNC : 0),
	};
	struct uffdio_register reg = {
		.range.start = (uintptr_t)row->addr,
		.range.len = row->len,
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	if (!row->registered)
		return;
	row->uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (row->uffd < 0 || ioctl(row->uffd, UFFDIO_API, &api) ||
	    ioctl(row->uffd, UFFDIO_REGISTER, &reg))
		give_up("userfaultfd: %s", strerror(errno));
}

static void protect(struct row *row, size_t from, size_t len, bool on)
{
	struct uffdio_writeprotect arg = {
		.range.start = (uintptr_t)row->addr + from,
		.range.len = len,
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	if (row->registered && ioctl(row->uffd, UFFDIO_WRITEPROTECT, &arg))
		give_up("UFFDIO_WRITEPROTECT: %s", strerror(errno));
}

static void set_prot(struct row *row, int prot)
{
	if (mprotect(row->addr, row->len, prot))
		give_up("mprotect: %s", strerror(errno));
}

static void move_to(struct row *row, int node)
{
	size_t step = row->kind == SHMEM_THP ? pmd_size : row->stride;
	static void *pages[PAGES];
	static int where[PAGES], status[PAGES];
	unsigned long i, nr = row->len / step;

	for (i = 0; i < nr; i++) {
		pages[i] = row->addr + i * step;
		where[i] = node;
	}
	if (syscall(__NR_move_pages, 0, nr, pages, where, status, 2))
		give_up("move_pages: %s", strerror(errno));
}

/*
 * Group "faults": what happens, from when the pages are there, and the write
 */

static void read_in(struct row *row)
{
	make(row);
	arm(row);
	start();
	read_all(row);
	stop(row->nr);
}

static void populate(struct row *row)
{
	make(row);
	arm(row);
	if (row->arg)
		write_all(row);
	else
		read_all(row);
}

static void read_then_write(struct row *row)
{
	populate(row);
	start();
	write_all(row);
	stop(row->nr);
}

static void mprotect_toggle(struct row *row)
{
	populate(row);
	start();
	set_prot(row, PROT_READ);
	set_prot(row, PROT_READ | PROT_WRITE);
	write_all(row);
	stop(row->nr);
}

static void protect_unprotect(struct row *row)
{
	populate(row);
	start();
	protect(row, 0, row->len, true);
	protect(row, 0, row->len, false);
	write_all(row);
	stop(row->nr);
}

static void unregister(struct row *row)
{
	struct uffdio_range range;

	populate(row);
	range.start = (uintptr_t)row->addr;
	range.len = row->len;
	start();
	if (row->registered && ioctl(row->uffd, UFFDIO_UNREGISTER, &range))
		give_up("UFFDIO_UNREGISTER: %s", strerror(errno));
	write_all(row);
	stop(row->nr);
}

static void protect_close(struct row *row)
{
	populate(row);
	protect(row, 0, row->len, true);
	start();
	if (row->registered)
		close(row->uffd);
	write_all(row);
	stop(row->nr);
}

static void migrate(struct row *row)
{
	populate(row);
	move_to(row, 0);
	start();
	move_to(row, 1);
	write_all(row);
	stop(row->nr);
}

static void fork_once(struct row *row)
{
	int status;
	pid_t pid;

	populate(row);
	start();
	pid = fork();
	if (!pid)
		_exit(0);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		give_up("fork: %s", strerror(errno));
	write_all(row);
	stop(row->nr);
}

static void async_populated(struct row *row)
{
	row->async = true;
	populate(row);
	protect(row, 0, row->len, true);
	start();
	write_all(row);
	stop(row->nr);
}

static void async_untouched(struct row *row)
{
	row->async = true;
	make(row);
	arm(row);
	protect(row, 0, row->len, true);
	start();
	write_all(row);
	stop(row->nr);
}

/* One processor, and nobody else's threads on it while something is counted. */
static void set_priority(int priority)
{
	struct sched_param param = { .sched_priority = priority };

	if (sched_setscheduler(0, SCHED_FIFO, &param))
		give_up("sched_setscheduler: %s", strerror(errno));
}

static void have_it_alone(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(0, &set);
	sched_setaffinity(0, sizeof(set), &set);
	write_file("/proc/sys/kernel/sched_rt_runtime_us", "-1");
	set_priority(1);
}

static int go[2], came[2];

static void say(int *to)
{
	if (write(to[1], "", 1) != 1)
		give_up("pipe: %s", strerror(errno));
}

static void wait_for(int *from)
{
	char byte;

	if (read(from[0], &byte, 1) != 1)
		give_up("pipe: %s", strerror(errno));
}

static void *writer(void *row)
{
	say(came);
	wait_for(go);
	write_all(row);
	say(came);
	return NULL;
}

/* protect, write, event, resolve: the pages one after the other */
static void event_cycle(struct row *row)
{
	struct uffd_msg msg;
	pthread_t thread;
	long i;

	if (!row->registered)
		give_up("-");
	populate(row);
	if (pipe(go) || pipe(came) || pthread_create(&thread, NULL, writer, row))
		give_up("no thread");
	/* A thread that starts or ends takes faults that are not the row's. */
	wait_for(came);
	/* Each event is read at once, each page written when it is resolved. */
	set_priority(2);
	start();
	protect(row, 0, row->len, true);
	say(go);
	for (i = 0; i < row->nr; i++) {
		if (read(row->uffd, &msg, sizeof(msg)) != sizeof(msg) ||
		    msg.event != UFFD_EVENT_PAGEFAULT)
			give_up("no event");
		protect(row, (msg.arg.pagefault.address & ~(row->stride - 1)) -
			     (uintptr_t)row->addr, row->stride, false);
	}
	wait_for(came);
	stop(row->nr);
	pthread_join(thread, NULL);
}

/*
 * Group "tracking": a round of dirty tracking. Some of the pages are written
 * (arg: how many in a hundred); then all that were written are found, and
 * tracked anew. Told for each page that was written.
 */

static struct scan_region regions[TRACKED / 4096];

static long scan_and_protect(struct row *row)
{
	struct scan_arg arg = {
		.size = sizeof(arg),
		.flags = SCAN_WP | SCAN_CHECK,
		.start = (uintptr_t)row->addr,
		.end = (uintptr_t)row->addr + row->len,
		.vec = (uintptr_t)regions,
		.vec_len = ARRAY_SIZE(regions),
		.category_mask = SCAN_WRITTEN,
		.return_mask = SCAN_WRITTEN,
	};
	int i, n = ioctl(pagemap_fd, SCAN_IOCTL, &arg);
	long found = 0;

	if (n < 0)
		give_up("PAGEMAP_SCAN: %s", strerror(errno));
	for (i = 0; i < n; i++)
		found += (regions[i].end - regions[i].start) / page_size;
	return found;
}

static long read_soft_dirty(struct row *row)
{
	static uint64_t entries[TRACKED / 4096];
	ssize_t n = pread(pagemap_fd, entries, row->nr * 8,
			  (uintptr_t)row->addr / page_size * 8);
	long i, found = 0;

	if (n != row->nr * 8)
		give_up("pagemap: %s", strerror(errno));
	for (i = 0; i < row->nr; i++)
		found += !!(entries[i] & PM_SOFT_DIRTY);
	if (!write_file("/proc/self/clear_refs", "4"))
		give_up("clear_refs: %s", strerror(errno));
	return found;
}

static long caught;

static void catch_write(int sig, siginfo_t *info, void *context)
{
	char *page = (char *)((uintptr_t)info->si_addr & ~(page_size - 1));

	(void)sig;
	(void)context;
	caught++;
	if (mprotect(page, page_size, PROT_READ | PROT_WRITE))
		_exit(1);
}

static long take_caught(struct row *row)
{
	long found = caught;

	set_prot(row, PROT_READ);
	caught = 0;
	return found;
}

static void track(struct row *row, long (*collect)(struct row *row))
{
	long nr, found;
	int round;

	row->len = TRACKED;
	row->async = true;
	make(row);
	arm(row);
	write_all(row);
	collect(row);
	nr = row->nr * row->arg / 100;
	/* The first round finds the page tables and VMAs as the setup left them. */
	for (round = 0; round < 2; round++) {
		start();
		write_some(row, nr);
		found = collect(row);
		stop(nr);
		if (found != nr)
			give_up("%ld of %ld pages found", found, nr);
	}
}

static void track_wp_async(struct row *row)
{
	row->registered = true;
	track(row, scan_and_protect);
}

static void track_soft_dirty(struct row *row)
{
	track(row, read_soft_dirty);
}

static void track_mprotect(struct row *row)
{
	struct sigaction action = {
		.sa_sigaction = catch_write,
		.sa_flags = SA_SIGINFO,
	};

	sigaction(SIGSEGV, &action, NULL);
	track(row, take_caught);
}

/*
 * Group "others": those who do not use it
 */

static void touch(struct row *row)
{
	make(row);
	start();
	if (row->arg)
		write_all(row);
	else
		read_all(row);
	stop(row->nr);
}

#define K(kind)	(1U << (kind))
#define SHARED	(K(MEMFD) | K(SHMEM_THP) | K(HUGETLB))
#define ALL	(K(ANON) | SHARED)

static const struct row rows[] = {
	{ FAULTS, "read_in", read_in, ALL, 0 },
	{ FAULTS, "read_then_write", read_then_write, ALL, 0 },
	{ FAULTS, "mprotect_clean", mprotect_toggle, ALL, 0 },
	{ FAULTS, "mprotect_dirty", mprotect_toggle, ALL, 1 },
	{ FAULTS, "protect_unprotect", protect_unprotect, ALL, 1 },
	{ FAULTS, "unregister", unregister, ALL, 1 },
	{ FAULTS, "protect_close", protect_close, ALL, 1 },
	{ FAULTS, "migrate", migrate, ALL, 1 },
	{ FAULTS, "fork_parent", fork_once, ALL, 1 },
	{ FAULTS, "async_populated", async_populated, ALL, 1 },
	{ FAULTS, "async_untouched", async_untouched, ALL, 1 },
	{ FAULTS, "event_cycle", event_cycle, ALL, 1 },

	{ TRACKING, "wp_async_1%", track_wp_async, K(ANON) | K(MEMFD), 1 },
	{ TRACKING, "wp_async_10%", track_wp_async, K(ANON) | K(MEMFD), 10 },
	{ TRACKING, "wp_async_100%", track_wp_async, K(ANON) | K(MEMFD), 100 },
	{ TRACKING, "soft_dirty_1%", track_soft_dirty, K(ANON) | K(MEMFD), 1 },
	{ TRACKING, "soft_dirty_10%", track_soft_dirty, K(ANON) | K(MEMFD), 10 },
	{ TRACKING, "soft_dirty_100%", track_soft_dirty, K(ANON) | K(MEMFD), 100 },
	{ TRACKING, "sigsegv_1%", track_mprotect, K(ANON) | K(MEMFD), 1 },
	{ TRACKING, "sigsegv_10%", track_mprotect, K(ANON) | K(MEMFD), 10 },
	{ TRACKING, "sigsegv_100%", track_mprotect, K(ANON) | K(MEMFD), 100 },

	{ OTHERS, "fault_in_read", touch, ALL | K(FILE_BACKED), 0 },
	{ OTHERS, "fault_in_write", touch, ALL | K(FILE_BACKED), 1 },
	{ OTHERS, "mprotect_toggle", mprotect_toggle, ALL | K(FILE_BACKED), 1 },
	{ OTHERS, "migrate", migrate, ALL, 1 },
	{ OTHERS, "fork", fork_once, ALL | K(FILE_BACKED), 1 },
};

static void run_row(const struct row *original, int kind, bool registered)
{
	struct figures best = { };
	bool first = true;
	int i, status;
	pid_t pid;

	for (i = 0; i < (original->group == TRACKING ? 4 : RUNS); i++) {
		memset(figures, 0, sizeof(*figures));
		pid = fork();
		if (!pid) {
			struct row row = *original;

			row.kind = kind;
			row.registered = registered;
			pagemap_fd = open("/proc/self/pagemap", O_RDONLY);
			start();
			row.run(&row);
			_exit(0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status || !figures->pages) {
			if (!strcmp(figures->why_not, "-"))
				return;
			best = *figures;
			if (!best.why_not[0])
				snprintf(best.why_not, sizeof(best.why_not), "died: status %#x", status);
			break;
		}
		if (first || figures->instructions < best.instructions)
			best = *figures;
		first = false;
	}
	mark('e');
	printf("%s\t%s\t%s\t%s\t", group_names[original->group], original->name, kind_names[kind],
	       registered ? "registered" : "unregistered");
	if (best.why_not[0])
		printf("failed: %s\n", best.why_not);
	else
		printf("%ld\t%ld\t%llu\n", best.pages, best.faults,
		       (unsigned long long)best.instructions);
}

/* GROUP [SCENARIO [MEMORY]]: all, or these */
static bool wanted(const struct row *row, int kind, int argc, char **argv)
{
	return row->kinds & K(kind) &&
	       (argc < 2 || !strcmp(argv[1], group_names[row->group])) &&
	       (argc < 3 || !strcmp(argv[2], row->name)) &&
	       (argc < 4 || !strcmp(argv[3], kind_names[kind]));
}

static int list(void)
{
	unsigned int i;
	int kind;

	for (i = 0; i < ARRAY_SIZE(rows); i++)
		for (kind = 0; kind < NR_KINDS; kind++)
			if (rows[i].kinds & K(kind))
				printf("%s %s %s\n", group_names[rows[i].group],
				       rows[i].name, kind_names[kind]);
	return 0;
}

int main(int argc, char **argv)
{
	static char out[64 << 10];
	char path[128];
	unsigned int i;
	int kind, node, registered;

	if (argc == 2 && !strcmp(argv[1], "-l"))
		return list();
	/* Told at the end: what carries it to the host would count, too. */
	setvbuf(stdout, out, _IOFBF, sizeof(out));
	find_sizes();
	set_knob(NUMAB_ON, "0");
	set_knob(THP "enabled", "never");
	set_knob(THP "shmem_enabled", "advise");
	for (node = 0; node < 2; node++) {
		snprintf(path, sizeof(path), NODES "node%d/hugepages/hugepages-%zukB/nr_hugepages",
			 node, huge_size >> 10);
		set_knob(path, "24");
	}
	figures = mmap(NULL, sizeof(*figures), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (figures == MAP_FAILED)
		return 1;
	have_it_alone();
	for (i = 0; i < ARRAY_SIZE(rows); i++)
		for (kind = 0; kind < NR_KINDS; kind++)
			for (registered = 0; registered < 2; registered++)
				if (wanted(&rows[i], kind, argc, argv) &&
				    (!registered || rows[i].group == FAULTS))
					run_row(&rows[i], kind, registered);
	return 0;
}
