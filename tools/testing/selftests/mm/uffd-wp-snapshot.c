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
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "uffd-wp-memory.h"
#include "uffd-wp-path.h"
#include "uffd-wp-row.h"

#define NR_PAGES	512
#define SWAPPED		16	/* pages: emulated machines are slow at it */
#define PASSES		16	/* of a tracker, before it stops the guest */
#define WAIT_MS		20000

/* of the test: what happens to the memory, and who writes to it */
static void start_disturbing(bool idle);
static bool disturbed(int enough);
static void stop_guest(void);

static char *mem, *copy;	/* NR_PAGES each */
static size_t len;
static bool saved[NR_PAGES];
static int nr_saved;
static int uffd;

/*
 * The example
 */

static void start_tracking(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)mem, .len = len },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		skip("userfaultfd: %s", strerror(errno));
	fail_if(ioctl(uffd, UFFDIO_REGISTER, &reg), "UFFDIO_REGISTER");
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

	fail_if(ioctl(uffd, UFFDIO_WRITEPROTECT, &wp), "UFFDIO_WRITEPROTECT");
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
	fail_if(madvise(mem, len, MADV_POPULATE_READ), "MADV_POPULATE_READ");
	start_tracking(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
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
		fail_if(nr < 0, "PAGEMAP_SCAN");
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

	start_tracking(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
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
		fail("torn: %d of %d pages are of another moment", torn, NR_PAGES);
}

/* The guest has stopped: the copy of a tracker is what the memory holds. */
static void check_same(void)
{
	int i, lost = 0;

	for (i = 0; i < NR_PAGES; i++)
		lost += !!memcmp(word(copy, i), word(mem, i), page_size);
	if (lost)
		fail("lost: %d of %d pages were written, unreported", lost, NR_PAGES);
}

/*
 * The disturbances. Each is done again and again, and returns how many pages
 * it happened to that are yet to be saved; or -1 if it cannot be here.
 */

static struct memory memory;

static int count_unsaved(uint64_t flag)
{
	int i, nr = 0;

	for (i = 0; i < NR_PAGES; i++)
		nr += !saved[i] &&
		      page_flags(pfn_of(mem + i * page_size)) & flag;
	return nr;
}

static void touch_all(void)
{
	int i;

	for (i = 0; i < NR_PAGES; i++)
		touch(mem + i * page_size);
}

static int ksm(void)
{
	if (madvise(mem, len, MADV_MERGEABLE))
		return -1;
	usleep(5000);
	return count_unsaved(KPF_KSM);
}

static int migrate(void)
{
	long long before = vm_counter("pgmigrate_success");
	static int turn;

	if (nr_nodes < 2)
		return -1;
	turn = !turn;
	try_move_pages(&memory, nodes[turn]);
	return vm_counter("pgmigrate_success") - before;
}

static int numa_hint(void)
{
	long long before = vm_counter("numa_hint_faults");
	int nr, n = 0;

	if (nr_nodes < 2)
		return -1;
	do {
		touch_all();
		nr = vm_counter("numa_hint_faults") - before;
	} while (nr < NR_PAGES / 8 && n++ < 100);
	return nr;
}

static int toggle(void)
{
	return mprotect(mem, len, PROT_READ) ||
	       mprotect(mem, len, PROT_READ | PROT_WRITE) ? 0 : NR_PAGES;
}

/* Of the pages that are saved last, others each time: some cannot be paged out. */
static int swap(void)
{
	static int turn;

	return swap_out_and_in(mem + len - (turn++ % 8 + 1) * SWAPPED * page_size,
			       SWAPPED * page_size);
}

static int collapse_all(void)
{
	if (collapse(&memory))
		return -1;
	touch_all();
	return count_unsaved(KPF_THP);
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
	{ "ksm", "KSM", ksm, NR_PAGES / 8, KSM "run", true, true },
	{ "migrate", "two nodes with memory and a CPU", migrate,
	  NR_PAGES / 8 },
	{ "numa", "NUMA balancing and two nodes", numa_hint,
	  NR_PAGES / 8, NUMAB_ON },
	{ "mprotect", "nothing", toggle, NR_PAGES },
	{ "swap", "swap space", swap, SWAPPED, NULL, true },
	{ "collapse", "huge pages of at most 512 small ones", collapse_all,
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
	if (started || !disturbance->once || (disturbance->idle && !idle))
		return;
	started = now_ms();
	start_thread(disturb, NULL);
}

/* Has it happened so often since it was started? */
static bool disturbed(int enough)
{
	int nr = __atomic_load_n(&last, __ATOMIC_RELAXED);

	if (!started ||
	    __atomic_load_n(&times, __ATOMIC_RELAXED) >= enough)
		return true;
	if (nr < 0)
		skip("needs %s", disturbance->needs);
	if (now_ms() - started > WAIT_MS)
		skip("it happened to %d of %d pages", nr, NR_PAGES);
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
		fail("spurious: %d pages are reported that were not written", nr);
}

/*
 * The rows
 */

static const struct way {
	const char *name;
	void (*take)(void);
} ways[] = {
	{ "sync", snapshot },
	{ "async", track },
};

static const char * const memories[] = { "anon", "memfd" };

/* What mprotect() forbids for a while is tried again, until it is allowed. */
static void on_segv(int sig)
{
}

static void run_row(const struct row_id *id)
{
	const struct way *way = id->of[2];
	bool anon;

	memory.kind = kind_named(id->word[1]);
	anon = is_private_anon(memory.kind);
	disturbance = id->of[0];
	signal(SIGSEGV, on_segv);
	look_at(getpid());
	memory.len = len;
	map_memory(&memory, PROT_READ | PROT_WRITE);
	mem = memory.addr;
	copy = reserve(len);
	fail_if(mprotect(copy, len, PROT_READ | PROT_WRITE), "mprotect");
	guest_thread = start_thread(guest, NULL);
	while (__atomic_load_n(word(mem, NR_PAGES - 1), __ATOMIC_RELAXED) < 2)
		usleep(100);
	/* Where something is protected, anonymous memory is not collapsed. */
	if (anon && disturbance->once == collapse_all)
		collapse_all();

	step("take");
	way->take();
	step("check");
	check_whole();
	if (way->take == track) {
		check_same();
		check_idle();
	}
}

static const char *impossible(const struct row_id *id)
{
	const struct disturbance *this = id->of[0];

	return this->anon && !is_private_anon(kind_named(id->word[1])) ?
	       "KSM merges anonymous pages only" : NULL;
}

static void set_knobs(const struct row_id *id)
{
	const struct disturbance *this = id->of[0];

	set_memory_knobs(kind_named(id->word[1]));
	set_numa_knobs(true);
	set_ksm_knobs(false);
	if (this->knob)
		set_knob(this->knob, "1");
}

static void setup(void)
{
	find_machine();
	len = NR_PAGES * page_size;
}

static const struct test test = {
	.tables = { TABLE(disturbances), TABLE(memories), TABLE(ways) },
	.seconds = 60,
	.impossible = impossible,
	.setup = setup,
	.set_knobs = set_knobs,
	.run = run_row,
};

int main(int argc, char **argv)
{
	return run_test(&test, argc, argv);
}
