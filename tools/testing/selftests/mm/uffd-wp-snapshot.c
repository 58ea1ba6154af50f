// SPDX-License-Identifier: GPL-2.0
/*
 * How to take a consistent snapshot of memory through userfaultfd write
 * protection, while somebody goes on writing to it:
 *
 *   snapshot()  as a VMM does it in the background: everything is protected at
 *               one moment, each page is saved before it is written to.
 *   track()     as a dirty tracker does it for live migration: what has been
 *               written is copied again and again, at last with the writer
 *               stopped.
 *
 * These two, and what they call, are the example. The rest is the test: a guest
 * whose memory has an invariant, and what else happens to the memory meanwhile.
 * A row is a disturbance x a kind of memory x one of the two; it passes if the
 * snapshot is whole, and is skipped if the disturbance did not happen.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <linux/fs.h>
#include <linux/mempolicy.h>

#include "../kselftest.h"
#include "uffd-wp-util.h"

#define NR_PAGES	512
#define SWAPPED		16	/* pages: emulated machines are slow at it */
#define PASSES		16	/* of a tracker, before it stops the guest */
#define WAIT_MS		20000
#define ROW_SECONDS	60

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif

#define KPF_KSM			BIT_ULL(21)
#define KPF_THP			BIT_ULL(22)

/* of the test: what happens to the memory, and who writes to it */
static void start_disturbing(bool idle);
static bool disturbed(int enough);
static void stop_guest(void);
static __noreturn __printf(2, 3) void end(int status, const char *fmt, ...);

static char *mem, *copy;	/* NR_PAGES each */
static size_t len;
static bool saved[NR_PAGES];
static int nr_saved;
static int uffd;

/*
 * The example
 */

static void arm(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)mem, .len = len },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		end(KSFT_SKIP, "userfaultfd: %s", strerror(errno));
	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		end(KSFT_FAIL, "UFFDIO_REGISTER: %s", strerror(errno));
}

/* Without UFFDIO_WRITEPROTECT_MODE_WP, it also wakes who waits for the pages. */
static void protect(int first, int nr, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = {
			.start = (uintptr_t)mem + first * page_size,
			.len = nr * page_size,
		},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	if (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp))
		end(KSFT_FAIL, "UFFDIO_WRITEPROTECT: %s", strerror(errno));
}

/* The event may be older than the sweep that has saved the page: wake anyway. */
static void save(int i)
{
	if (!saved[i]) {
		memcpy(copy + i * page_size, mem + i * page_size, page_size);
		saved[i] = true;
		nr_saved++;
		/* Where it goes to is slow, and half-way it stalls. */
		if (nr_saved % 32 == 0)
			usleep(2000);
		while (nr_saved == NR_PAGES / 2 && !disturbed(1))
			usleep(2000);
	}
	protect(i, 1, false);
}

static void snapshot(void)
{
	struct uffd_msg msg;
	int next = 0;

	/* A private page that is not there would not be protected. */
	if (madvise(mem, len, MADV_POPULATE_READ))
		end(KSFT_FAIL, "MADV_POPULATE_READ: %s", strerror(errno));
	arm(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	protect(0, NR_PAGES, true);	/* the moment that the snapshot shows */
	start_disturbing(true);
	while (nr_saved < NR_PAGES) {
		if (read(uffd, &msg, sizeof(msg)) == sizeof(msg))
			save((msg.arg.pagefault.address - (uintptr_t)mem) / page_size);
		else
			save(next++);	/* nobody waits: on with the rest */
	}
	close(uffd);
	stop_guest();
}

/* Copies what was written since the last time, and protects it. How much? */
static int copy_written(void)
{
	struct page_region region[64];
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = (uintptr_t)mem,
		.end = (uintptr_t)mem + len,
		.vec = (uintptr_t)region,
		.vec_len = ARRAY_SIZE(region),
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	size_t size, sum = 0;
	int i, nr;

	do {
		nr = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
		if (nr < 0)
			end(KSFT_FAIL, "PAGEMAP_SCAN: %s", strerror(errno));
		for (i = 0; i < nr; i++) {
			size = region[i].end - region[i].start;
			memcpy(copy + (region[i].start - (uintptr_t)mem),
			       (void *)(uintptr_t)region[i].start, size);
			sum += size;
		}
		arg.start = arg.walk_end;
	} while (arg.start < arg.end);
	return sum / page_size;
}

static void track(void)
{
	int i;

	arm(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
	copy_written();		/* what was never protected counts as written */
	start_disturbing(false);
	for (i = 0; i < PASSES || !disturbed(1); i++) {
		copy_written();
		usleep(1000);	/* where it goes to is slow */
	}
	stop_guest();
	copy_written();		/* what is left: the copy is whole */
}

/*
 * The guest writes its round into each page, in order. So at any moment they
 * hold one round, from some page on the one before.
 */

static pthread_t guest_thread;
static bool guest_stopped;
static pthread_mutex_t calm = PTHREAD_MUTEX_INITIALIZER;

static uint64_t *word(char *pages, int i)
{
	return (uint64_t *)(pages + i * page_size);
}

static void *guest(void *unused)
{
	uint64_t n;

	for (n = NR_PAGES; !__atomic_load_n(&guest_stopped, __ATOMIC_RELAXED); n++) {
		__atomic_store_n(word(mem, n % NR_PAGES), n / NR_PAGES,
				 __ATOMIC_RELEASE);
		if (n % NR_PAGES == 0)
			usleep(100);
	}
	return NULL;
}

/* The disturbance pauses too, so that the next one begins after the copy. */
static void stop_guest(void)
{
	__atomic_store_n(&guest_stopped, true, __ATOMIC_RELAXED);
	pthread_join(guest_thread, NULL);
	pthread_mutex_lock(&calm);
}

static void check_whole(void)
{
	uint64_t first = *word(copy, 0), now = first;
	int i, torn = 0;

	/* at most one step down, and never up */
	for (i = 0; i < NR_PAGES; i++) {
		if (*word(copy, i) > now || *word(copy, i) + 1 < first)
			torn++;
		else
			now = *word(copy, i);
	}
	if (torn)
		end(KSFT_FAIL, "torn: %d of %d pages are of another moment",
		    torn, NR_PAGES);
}

/* The guest has stopped: the copy of a tracker is what the memory holds. */
static void check_same(void)
{
	int i, lost = 0;

	for (i = 0; i < NR_PAGES; i++)
		lost += !!memcmp(word(copy, i), word(mem, i), page_size);
	if (lost)
		end(KSFT_FAIL, "lost: %d of %d pages were written, unreported",
		    lost, NR_PAGES);
}

/*
 * The disturbances. Each is done again and again, and returns how many pages
 * it happened to that are yet to be saved; or -1 if it cannot be here.
 */

static int count_pages(uint64_t flag)
{
	int i, nr = 0;

	for (i = 0; i < NR_PAGES; i++)
		nr += !saved[i] &&
		      page_flags(pfn_of(mem + i * page_size)) & flag;
	return nr;
}

static int touch(void)
{
	int i, sum = 0;

	for (i = 0; i < NR_PAGES; i++)
		sum += __atomic_load_n(word(mem, i), __ATOMIC_RELAXED);
	return sum;
}

static int ksm(void)
{
	if (madvise(mem, len, MADV_MERGEABLE))
		return -1;
	usleep(5000);
	return count_pages(KPF_KSM);
}

static int migrate(void)
{
	static int to[NR_PAGES], status[NR_PAGES], turn;
	static void *page[NR_PAGES];
	long long before = vm_counter("pgmigrate_success");
	int i;

	if (nr_nodes < 2)
		return -1;
	turn = !turn;
	for (i = 0; i < NR_PAGES; i++) {
		page[i] = mem + i * page_size;
		to[i] = nodes[turn];
	}
	syscall(__NR_move_pages, 0, NR_PAGES, page, to, status, MPOL_MF_MOVE);
	return vm_counter("pgmigrate_success") - before;
}

static int numa_hint(void)
{
	long long before = vm_counter("numa_hint_faults");
	int nr, n = 0;

	if (nr_nodes < 2)
		return -1;
	do {
		touch();
		nr = vm_counter("numa_hint_faults") - before;
	} while (nr < NR_PAGES / 8 && n++ < 100);
	return nr;
}

static int toggle(void)
{
	return mprotect(mem, len, PROT_READ) ||
	       mprotect(mem, len, PROT_READ | PROT_WRITE) ? 0 : NR_PAGES;
}

/*
 * Of the pages that are saved last. What has just been faulted in may wait in
 * another CPU's batch for the LRU, and cannot be paged out: so others each time.
 */
static int swap(void)
{
	static int turn;
	char *part = mem + len - (turn++ % 8 + 1) * SWAPPED * page_size;
	long long before = vm_counter("pswpin") + vm_counter("pswpout");
	struct sysinfo info;

	if (sysinfo(&info) || !info.totalswap)
		return -1;
	madvise(part, SWAPPED * page_size, MADV_PAGEOUT);
	touch();
	return vm_counter("pswpin") + vm_counter("pswpout") - before;
}

static int collapse(void)
{
	size_t at;

	if (pmd_size > len)
		return -1;
	for (at = 0; at + pmd_size <= len; at += pmd_size)
		madvise(mem + at, pmd_size, MADV_COLLAPSE);
	touch();
	return count_pages(KPF_THP);
}

static const struct disturbance {
	const char *name, *needs;
	int (*once)(void);
	int enough;		/* pages, or it did not happen */
	const char *knob;	/* 1 while the row runs */
	bool idle;		/* happens to what nobody writes to, */
	bool anon;		/* and is private */
} disturbances[] = {
	{ "none" },
	{ "ksm", "KSM", ksm, NR_PAGES / 8,
	  KSM "run", true, true },
	{ "migrate", "two nodes with memory and a CPU", migrate,
	  NR_PAGES / 8 },
	{ "numa", "NUMA balancing and two nodes", numa_hint,
	  NR_PAGES / 8, NUMAB_ON },
	{ "mprotect", "nothing", toggle, NR_PAGES },
	{ "swap", "swap space", swap, SWAPPED, NULL, true },
	{ "collapse", "huge pages of at most 512 small ones", collapse,
	  NR_PAGES / 8 },
};

static const struct disturbance *disturbance;
static int times, last;	/* that it happened; to how many pages */
static uint64_t started;

static void *disturb(void *unused)
{
	int nr;

	do {
		pthread_mutex_lock(&calm);
		nr = disturbance->once();
		__atomic_store_n(&last, nr, __ATOMIC_RELAXED);
		if (nr >= disturbance->enough)
			__atomic_add_fetch(&times, 1, __ATOMIC_RELAXED);
		pthread_mutex_unlock(&calm);
		usleep(1000);
	} while (nr >= 0);
	return NULL;
}

/* From now on, unless it does already, or waits for the memory to be @idle */
static void start_disturbing(bool idle)
{
	pthread_t thread;

	if (started || !disturbance->once || (disturbance->idle && !idle))
		return;
	started = now_ms();
	if (pthread_create(&thread, NULL, disturb, NULL))
		end(KSFT_FAIL, "pthread_create");
}

/* Has it happened so often since it was started? */
static bool disturbed(int enough)
{
	int nr = __atomic_load_n(&last, __ATOMIC_RELAXED);

	if (!started ||
	    __atomic_load_n(&times, __ATOMIC_RELAXED) >= enough)
		return true;
	if (nr < 0)
		end(KSFT_SKIP, "needs %s", disturbance->needs);
	if (now_ms() - started > WAIT_MS)
		end(KSFT_SKIP, "it happened to %d of %d pages", nr, NR_PAGES);
	return false;
}

/* Whatever happens to the memory, nobody writes to it. */
static void check_idle(void)
{
	int nr, enough = times + 1;

	pthread_mutex_unlock(&calm);
	start_disturbing(true);
	while (!disturbed(enough))
		usleep(2000);
	nr = copy_written();
	if (nr)
		end(KSFT_FAIL, "spurious: %d pages are reported that were not written",
		    nr);
}

/*
 * The rows
 */

static const struct mode {
	const char *name;
	void (*take)(void);
} modes[] = {
	{ "sync", snapshot },
	{ "async", track },
};

static const char * const memories[] = { "anon", "memfd" };

static char *why;	/* shared with the parent */

static void end(int status, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, 256, fmt, args);
	va_end(args);
	_exit(status);
}

static void map_memory(bool anon)
{
	int fd = anon ? -1 : memfd_create("uffd-wp-snapshot", MFD_CLOEXEC);
	char *room = mmap(NULL, len + pmd_size, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (room == MAP_FAILED || (!anon && (fd < 0 || ftruncate(fd, len))))
		end(KSFT_FAIL, "setup: %s", strerror(errno));
	mem = (char *)(((uintptr_t)room + pmd_size - 1) & ~(pmd_size - 1));
	mem = mmap(mem, len, PROT_READ | PROT_WRITE, MAP_FIXED |
		   (anon ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED), fd, 0);
	copy = mmap(NULL, len, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED || copy == MAP_FAILED)
		end(KSFT_FAIL, "setup: %s", strerror(errno));
}

/* What mprotect() forbids for a while is tried again, until it is allowed. */
static void on_segv(int sig)
{
}

static void run_row(const struct mode *mode, bool anon)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(ROW_SECONDS);
	signal(SIGSEGV, on_segv);
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap_fd < 0)
		end(KSFT_SKIP, "no /proc/self/pagemap: %s", strerror(errno));
	map_memory(anon);
	if (pthread_create(&guest_thread, NULL, guest, NULL))
		end(KSFT_FAIL, "setup: pthread_create");
	while (__atomic_load_n(word(mem, NR_PAGES - 1), __ATOMIC_RELAXED) < 2)
		usleep(100);
	/* Where something is protected, anonymous memory is not collapsed. */
	if (anon && disturbance->once == collapse)
		collapse();

	mode->take();
	check_whole();
	if (mode->take == track) {
		check_same();
		check_idle();
	}
	end(KSFT_PASS, "whole");
}

static void do_row(const struct mode *mode, const char *name, bool anon)
{
	int status;
	pid_t pid;

	/* a kernel that dies of it cannot tell afterwards */
	ksft_print_msg("row %s\n", name);
	fflush(stdout);
	snprintf(why, 256, "died, or was not finished in %d s", ROW_SECONDS);
	if (disturbance->knob)
		set_knob(disturbance->knob, "1");
	pid = fork();
	if (!pid)
		run_row(mode, anon);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		ksft_exit_fail_msg("fork: %s\n", strerror(errno));
	if (disturbance->knob)
		set_knob(disturbance->knob, "0");

	if (WIFEXITED(status) && WEXITSTATUS(status) == KSFT_PASS)
		ksft_test_result_pass("%s\n", name);
	else if (WIFEXITED(status) && WEXITSTATUS(status) == KSFT_SKIP)
		ksft_test_result_skip("%s # %s\n", name, why);
	else
		ksft_test_result_fail("%s # %s\n", name, why);
}

static unsigned int each_row(const char *selection, bool run)
{
	unsigned int d, m, k, nr = 0;
	char name[64];

	for (d = 0; d < ARRAY_SIZE(disturbances); d++)
		for (k = 0; k < ARRAY_SIZE(memories); k++)
			for (m = 0; m < ARRAY_SIZE(modes); m++) {
				disturbance = &disturbances[d];
				snprintf(name, sizeof(name), "%s %s %s",
					 disturbance->name, memories[k],
					 modes[m].name);
				if ((k && disturbance->anon) ||
				    (selection && !strstr(name, selection)))
					continue;
				nr++;
				if (run)
					do_row(&modes[m], name, !k);
			}
	return nr;
}

static void set_knobs(void)
{
	set_knob(THP "enabled", "madvise");
	set_knob(NUMAB_ON, "0");
	set_knob(NUMAB "scan_delay_ms", "1");
	set_knob(NUMAB "scan_period_min_ms", "1");
	set_knob(NUMAB "scan_size_mb", "16");
	set_knob(KSM "run", "0");
	set_knob(KSM "advisor_mode", "none");
	set_knob(KSM "smart_scan", "0");
	set_knob(KSM "sleep_millisecs", "0");
	set_knob(KSM "pages_to_scan", "5000");
}

int main(int argc, char **argv)
{
	const char *selection = argc > 1 ? argv[1] : NULL;
	unsigned int nr = each_row(selection, false);

	if (!nr) {
		fprintf(stderr, "%s: there is no row \"%s\"\n", argv[0], selection);
		return 2;
	}
	ksft_print_header();
	if (geteuid())
		ksft_exit_skip("needs root, for the knobs and /proc/kpageflags\n");
	find_sizes();
	find_nodes();
	len = NR_PAGES * page_size;
	kpageflags_fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	vmstat_fd = open("/proc/vmstat", O_RDONLY | O_CLOEXEC);
	why = mmap(NULL, 256, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (kpageflags_fd < 0 || vmstat_fd < 0 || why == MAP_FAILED)
		ksft_exit_skip("needs /proc/kpageflags and /proc/vmstat\n");
	set_knobs();

	ksft_set_plan(nr);
	each_row(selection, true);

	restore_knobs();
	ksft_finished();
}
