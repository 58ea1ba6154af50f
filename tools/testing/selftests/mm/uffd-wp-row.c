// SPDX-License-Identifier: GPL-2.0
/*
 * Runs the rows of a uffd-wp test, see uffd-wp-row.h.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <time.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "uffd-wp-row.h"

#define MAX_TRIES	32
#define KILL_SECONDS	5	/* after which a row cannot be killed */
#define MAX_HUNG_MS	300000	/* of rows that hang; then the rest is given up */

struct report *report;

static const struct test *test;
static bool verbose, spare;

uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000;
}

/*
 * Files and knobs
 */

ssize_t read_text(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n, len = 0;

	if (fd < 0)
		return -1;
	while ((n = read(fd, buf + len, size - 1 - len)) > 0)
		len += n;
	close(fd);
	if (n < 0)
		return -1;
	buf[len] = '\0';
	return len;
}

bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return false;
	n = write(fd, text, strlen(text));
	close(fd);
	return n == (ssize_t)strlen(text);
}

long read_long(const char *path)
{
	char buf[32];

	return read_text(path, buf, sizeof(buf)) > 0 ? atol(buf) : -1;
}

long long field(const char *text, const char *key)
{
	const char *at = text, *end;

	while ((at = strstr(at, key))) {
		end = at + strlen(key);
		if ((at == text || at[-1] == '\n') && strspn(end, " :\t"))
			return atoll(end + strspn(end, " :\t"));
		at = end;
	}
	return -1;
}

#define VALUE_LEN	64

static struct knob {
	char path[128];
	char saved[VALUE_LEN];
	char now[VALUE_LEN];
} knobs[64];

static unsigned int nr_knobs;

static bool read_knob(const char *path, char *value)
{
	char buf[256], *from, *to;

	if (read_text(path, buf, sizeof(buf)) < 0)
		return false;
	/* some say "this [that] other" */
	from = strchr(buf, '[');
	to = from ? strchr(from, ']') : strchr(buf, '\n');
	from = from ? from + 1 : buf;
	if (to)
		*to = '\0';
	snprintf(value, VALUE_LEN, "%.*s", VALUE_LEN - 1, from);
	return true;
}

bool set_knob(const char *path, const char *value)
{
	struct knob *knob;
	unsigned int i;

	for (i = 0; i < nr_knobs; i++)
		if (!strcmp(knobs[i].path, path))
			break;
	if (i == ARRAY_SIZE(knobs))
		return false;
	knob = &knobs[i];
	if (i == nr_knobs) {
		if (!read_knob(path, knob->saved))
			return false;
		memcpy(knob->now, knob->saved, VALUE_LEN);
		snprintf(knob->path, sizeof(knob->path), "%s", path);
		nr_knobs++;
	}
	if (!strcmp(knob->now, value))
		return true;
	if (!write_text(path, value))
		return false;
	snprintf(knob->now, sizeof(knob->now), "%s", value);
	return true;
}

static void set_knobs_again(void)
{
	char value[VALUE_LEN];
	unsigned int i;

	for (i = 0; i < nr_knobs; i++)
		if (read_knob(knobs[i].path, value) &&
		    strcmp(knobs[i].now, value))
			write_text(knobs[i].path, knobs[i].now);
}

static void restore_knobs(void)
{
	while (nr_knobs) {
		nr_knobs--;
		write_text(knobs[nr_knobs].path, knobs[nr_knobs].saved);
	}
}

/*
 * The process of a row
 */

static __noreturn __printf(2, 0) void end_row(enum outcome outcome,
					      const char *fmt, va_list args)
{
	vsnprintf(report->text, sizeof(report->text), fmt, args);
	report->outcome = outcome;
	_exit(0);
}

void fail(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	end_row(FAIL, fmt, args);
}

void skip(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	end_row(SKIP, fmt, args);
}

void again(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	end_row(AGAIN, fmt, args);
}

void fail_if(bool failed, const char *what)
{
	if (failed)
		fail("setup: %s: %s", what, strerror(errno));
}

void step(const char *name)
{
	snprintf(report->step, sizeof(report->step), "%s", name);
}

pthread_t start_thread(void *(*fn)(void *arg), void *arg)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, fn, arg))
		fail("setup: cannot start a thread");
	return thread;
}

static __printf(1, 2) void failed(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(report->text, sizeof(report->text), fmt, args);
	va_end(args);
	report->outcome = FAIL;
}

static pid_t row_pid;

/* Returns false if the process could not even be killed. */
static bool wait_process(int *status, int seconds)
{
	uint64_t until = now_ms() + seconds * 1000ULL;
	struct timespec limit = { .tv_sec = seconds };
	bool killed = false;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	for (;;) {
		if (waitpid(row_pid, status, WNOHANG) == row_pid)
			return true;
		sigtimedwait(&set, NULL, &limit);
		if (now_ms() < until)
			continue;
		if (killed)
			return waitpid(row_pid, status, WNOHANG) == row_pid;
		kill(row_pid, SIGKILL);
		killed = true;
		until = now_ms() + KILL_SECONDS * 1000;
		limit.tv_sec = KILL_SECONDS;
	}
}

void run_process(void (*fn)(const void *arg), const void *arg, int seconds)
{
	uint64_t start = now_ms();
	int status = 0;
	sigset_t set;

	if (!report) {
		report = mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		if (report == MAP_FAILED)
			ksft_exit_fail_msg("mmap: %s\n", strerror(errno));
		sigemptyset(&set);
		sigaddset(&set, SIGCHLD);
		sigprocmask(SIG_BLOCK, &set, NULL);
	}
	memset(report, 0, sizeof(*report));
	row_pid = fork();
	if (row_pid < 0) {
		failed("setup: fork: %s", strerror(errno));
		return;
	}
	if (!row_pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		step("start");
		fn(arg);
		report->outcome = PASS;
		_exit(0);
	}
	if (!wait_process(&status, seconds))
		failed("hang: in step '%s', and it cannot be killed", report->step);
	else if (report->outcome == DIED && now_ms() - start >= seconds * 1000ULL)
		failed("hang: not finished in %d s, in step '%s'", seconds,
		       report->step);
	else if (report->outcome == DIED)
		failed("crash: %s %d in step '%s'",
		       WIFSIGNALED(status) ? "signal" : "exit",
		       WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
		       report->step);
	row_pid = 0;
}

/*
 * Running the rows
 */

static void run_in_process(const void *arg)
{
	test->run(arg);
}

static void try_row(const struct row_id *id)
{
	if (test->set_knobs)
		test->set_knobs(id);
	run_process(run_in_process, id, test->seconds);
	set_knobs_again();
}

static void do_row(struct row_id *id)
{
	static uint64_t hung_ms;
	uint64_t start = now_ms();

	/* a kernel that dies of it cannot tell afterwards */
	ksft_print_msg("row %s\n", id->name);
	fflush(stdout);
	if (hung_ms > MAX_HUNG_MS)
		failed("hang: not run, rows before it hung for %d s",
		       (int)(hung_ms / 1000));
	else
		try_row(id);
	while (report->outcome == AGAIN && ++id->try < MAX_TRIES &&
	       now_ms() - start < test->seconds * 1000ULL) {
		if (verbose)
			ksft_print_msg("%s: once more: %s\n", id->name, report->text);
		try_row(id);
	}

	switch (report->outcome) {
	case PASS:
		ksft_test_result_pass("%s\n", id->name);
		break;
	case SKIP:
	case AGAIN:
		/* ksft_test_result_skip() has the name and the reason as one */
		ksft_inc_xskip_cnt();
		printf("ok %u %s # SKIP %s\n", ksft_test_num(), id->name, report->text);
		break;
	default:
		if (!strncmp(report->text, "hang:", 5))
			hung_ms += now_ms() - start;
		ksft_test_result_fail("%s # %s\n", id->name, report->text);
		break;
	}
	if (verbose)
		ksft_print_msg("%s took %d ms\n", id->name, (int)(now_ms() - start));
}

/*
 * Choosing rows: by exact name, or else by a part of it
 */

static struct {
	const char *text;
	bool exact, row, impossible;	/* what it is the name of, or in */
} selection[64];

static unsigned int nr_selected;

static void add_selection(char *arg)
{
	char *one;

	for (one = strtok(arg, ","); one; one = strtok(NULL, ","))
		if (nr_selected < ARRAY_SIZE(selection))
			selection[nr_selected++].text = one;
}

static bool selects(unsigned int i, const char *name)
{
	return selection[i].exact ? !strcmp(name, selection[i].text) :
				    !!strstr(name, selection[i].text);
}

static bool selected(const char *name)
{
	unsigned int i;

	for (i = 0; i < nr_selected; i++)
		if (selects(i, name))
			return true;
	return !nr_selected;
}

typedef void (*row_fn)(struct row_id *id, const char *why_not);

static const char *why_not(const struct row_id *id)
{
	const char *why = test->impossible ? test->impossible(id) : NULL;

	if (!why && spare && test->spoils && test->spoils(id))
		why = "takes memory out of use";
	return why;
}

static void each_row(row_fn fn)
{
	const struct table *table;
	size_t n, rest, nr = 1;

	for (table = test->tables; table < test->tables + NR_TABLES; table++)
		if (table->len)
			nr *= table->len / table->size;
	for (n = 0; n < nr; n++) {
		struct row_id id = { };
		size_t len = 0;
		int i;

		/* rows that differ in the last word only are next to each other */
		for (i = 0, rest = nr; i < NR_TABLES; i++) {
			table = &test->tables[i];
			if (!table->len)
				break;
			rest /= table->len / table->size;
			id.of[i] = (const char *)table->entries +
				   n / rest * table->size % table->len;
			id.word[i] = *(const char * const *)id.of[i];
			len += snprintf(id.name + len, sizeof(id.name) - len, "%s%s",
					i ? " " : "", id.word[i]);
		}
		if (selected(id.name))
			fn(&id, why_not(&id));
	}
}

static unsigned int nr_rows;

static void find_exact(struct row_id *id, const char *why_not)
{
	unsigned int i;

	for (i = 0; i < nr_selected; i++)
		if (!strcmp(id->name, selection[i].text))
			selection[i].exact = true;
}

static void count_row(struct row_id *id, const char *why_not)
{
	unsigned int i;

	if (!why_not)
		nr_rows++;
	for (i = 0; i < nr_selected; i++) {
		if (!selects(i, id->name))
			continue;
		if (why_not)
			selection[i].impossible = true;
		else
			selection[i].row = true;
	}
}

static void list_row(struct row_id *id, const char *why_not)
{
	if (why_not)
		printf("n/a %s: %s\n", id->name, why_not);
	else
		printf("%s\n", id->name);
}

static void run_one(struct row_id *id, const char *why_not)
{
	if (!why_not)
		do_row(id);
}

/*
 * Start and end
 */

static pid_t main_pid;

static void put_back(void)
{
	if (getpid() != main_pid)
		return;
	if (row_pid > 0)
		kill(row_pid, SIGKILL);
	restore_knobs();
	if (test->cleanup)
		test->cleanup();
}

static void on_signal(int sig)
{
	put_back();
	signal(sig, SIG_DFL);
	raise(sig);
}

static const char help[] =
	"usage: %s [-l] [-s] [-v] [-h] [-t TEXT] [TEXT...]\n"
	"  Runs the rows whose name is or contains TEXT, else all. Several TEXTs may be\n"
	"  given, also in one argument with commas.\n"
	"  -l  list the rows, and the combinations that cannot be, with the reason\n"
	"  -s  spare the machine: not the rows that take memory out of use\n"
	"  -v  say how long each row took, and what had to be tried again\n"
	"  -h  this text\n";

int run_test(const struct test *the_test, int argc, char **argv)
{
	bool list = false;
	unsigned int i;
	int opt;

	test = the_test;
	opterr = 0;
	while ((opt = getopt(argc, argv, "hlsvt:")) != -1) {
		switch (opt) {
		case 'h':
			printf(help, argv[0]);
			return 0;
		case 'l':
			list = true;
			break;
		case 's':
			spare = true;
			break;
		case 'v':
			verbose = true;
			break;
		case 't':
			add_selection(optarg);
			break;
		default:
			fprintf(stderr, "%s: unknown or incomplete option -%c, see -h\n",
				argv[0], optopt);
			return 2;
		}
	}
	for (; optind < argc; optind++)
		add_selection(argv[optind]);
	each_row(find_exact);
	each_row(count_row);
	for (i = 0; i < nr_selected; i++) {
		if (selection[i].row || (list && selection[i].impossible))
			continue;
		fprintf(stderr, "%s: there %s no row \"%s\", see -l\n", argv[0],
			selection[i].impossible ? "can be" : "is", selection[i].text);
		return 2;
	}
	if (list) {
		each_row(list_row);
		return 0;
	}

	ksft_print_header();
	if (geteuid())
		ksft_exit_skip("needs root, for pagemap and the knobs in /sys\n");
	main_pid = getpid();
	atexit(put_back);
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	signal(SIGHUP, on_signal);
	if (test->setup)
		test->setup();

	ksft_set_plan(nr_rows);
	each_row(run_one);
	if (ksft_get_fail_cnt())
		ksft_exit_fail();
	ksft_exit_pass();
}
