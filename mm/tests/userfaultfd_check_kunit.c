// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of the shadow of mm/userfaultfd_check.c: what is protected, dropped, moved
 * and forgotten. What calls it is tested by the selftests under tools/.
 */
#include <kunit/test.h>
#include <linux/mm.h>
#include <linux/page_table_check.h>
#include <linux/userfaultfd_check.h>

#define PAGES(n)	((n) * PAGE_SIZE)

/* The last page of a PMD, so that ranges cross into the next one */
#define ADDR		(PMD_SIZE * 5 - PAGE_SIZE)

/* Only the address and the flags of it are looked at. */
static struct mm_struct *get_mm(struct kunit *test)
{
	struct mm_struct *mm = kunit_kzalloc(test, sizeof(*mm), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, mm);
	return mm;
}

/* Are just these pages of those from @addr on protected? */
static void expect(struct kunit *test, struct mm_struct *mm, unsigned long addr,
		   const char *pages)
{
	int i;

	for (i = 0; pages[i]; i++)
		KUNIT_EXPECT_EQ_MSG(test,
				    userfaultfd_check_is_protected(mm, addr + PAGES(i)),
				    pages[i] == '1', "page %d of %s", i, pages);
}

static void protects_and_drops(struct kunit *test)
{
	struct mm_struct *mm = get_mm(test);

	expect(test, mm, ADDR - PAGES(1), "00000");
	userfaultfd_check_protect(mm, ADDR, PAGES(3));
	expect(test, mm, ADDR - PAGES(1), "01110");
	userfaultfd_check_drop(mm, ADDR + PAGES(1), PAGES(1));
	expect(test, mm, ADDR - PAGES(1), "01010");
	userfaultfd_check_drop(mm, 0, TASK_SIZE);
	expect(test, mm, ADDR - PAGES(1), "00000");
	userfaultfd_check_protect(mm, ADDR + PAGES(1), PAGES(1));
	expect(test, mm, ADDR - PAGES(1), "00100");
	userfaultfd_check_exit(mm);
}

static void takes_empty_ranges(struct kunit *test)
{
	struct mm_struct *mm = get_mm(test);

	userfaultfd_check_drop(mm, ADDR, 0);
	userfaultfd_check_protect(mm, ADDR, 0);
	expect(test, mm, ADDR - PAGES(1), "000");
	userfaultfd_check_protect(mm, ADDR, PAGES(1));
	userfaultfd_check_drop(mm, ADDR, 0);
	userfaultfd_check_move(mm, ADDR, ADDR + PAGES(1), 0);
	expect(test, mm, ADDR - PAGES(1), "010");
	userfaultfd_check_exit(mm);
}

static void moves(struct kunit *test)
{
	const unsigned long to = ADDR + 7 * PMD_SIZE + PAGES(3);
	struct mm_struct *mm = get_mm(test);

	userfaultfd_check_protect(mm, ADDR, PAGES(1));
	userfaultfd_check_protect(mm, ADDR + PAGES(2), PAGES(1));
	userfaultfd_check_protect(mm, to, PAGES(4));
	userfaultfd_check_move(mm, ADDR, to, PAGES(3));
	expect(test, mm, ADDR, "000");
	expect(test, mm, to, "1011");

	/* and back, as when mremap() fails */
	userfaultfd_check_move(mm, to, ADDR, PAGES(4));
	expect(test, mm, ADDR, "1011");
	expect(test, mm, to, "0000");
	userfaultfd_check_exit(mm);
}

/* What is moved by a few pages is in the bitmap that it comes from. */
static void moves_nearby(struct kunit *test)
{
	struct mm_struct *mm = get_mm(test);

	userfaultfd_check_protect(mm, 0, PAGES(1));
	userfaultfd_check_protect(mm, PAGES(2), PAGES(2));
	userfaultfd_check_move(mm, PAGES(1), PAGES(4), PAGES(2));
	expect(test, mm, 0, "1001010");
	userfaultfd_check_move(mm, PAGES(5), PAGES(1), PAGES(2));
	expect(test, mm, 0, "1101000");
	userfaultfd_check_exit(mm);
}

/* Of many bitmaps, those in the middle are dropped and moved as a whole. */
static void takes_long_ranges(struct kunit *test)
{
	const unsigned long len = 3 * PMD_SIZE, to = ADDR + 8 * PMD_SIZE;
	struct mm_struct *mm = get_mm(test);

	userfaultfd_check_protect(mm, ADDR, len);
	expect(test, mm, ADDR - PAGES(1), "011");
	expect(test, mm, ADDR + len - PAGES(1), "10");
	userfaultfd_check_move(mm, ADDR, to, len);
	expect(test, mm, ADDR, "00");
	expect(test, mm, ADDR + len - PAGES(1), "00");
	expect(test, mm, to - PAGES(1), "011");
	expect(test, mm, to + PMD_SIZE, "11");
	userfaultfd_check_drop(mm, to + PAGES(1), len - PAGES(2));
	expect(test, mm, to - PAGES(1), "010");
	expect(test, mm, to + PMD_SIZE, "00");
	expect(test, mm, to + len - PAGES(2), "010");
	userfaultfd_check_exit(mm);
}

static void knows_each_mm(struct kunit *test)
{
	struct mm_struct *mm = get_mm(test), *other = get_mm(test);

	userfaultfd_check_protect(mm, ADDR, PAGES(2));
	userfaultfd_check_protect(other, ADDR + PAGES(1), PAGES(2));
	expect(test, mm, ADDR, "110");
	expect(test, other, ADDR, "011");
	userfaultfd_check_exit(mm);
	expect(test, mm, ADDR, "000");
	expect(test, other, ADDR, "011");
	userfaultfd_check_exit(other);
	userfaultfd_check_exit(other);
}

static int needs_page_table_check(struct kunit *test)
{
	if (static_branch_likely(&page_table_check_disabled))
		kunit_skip(test, "nothing is recorded without page_table_check=on");
	return 0;
}

static struct kunit_case userfaultfd_check_test_cases[] = {
	KUNIT_CASE(protects_and_drops),
	KUNIT_CASE(takes_empty_ranges),
	KUNIT_CASE(moves),
	KUNIT_CASE(moves_nearby),
	KUNIT_CASE(takes_long_ranges),
	KUNIT_CASE(knows_each_mm),
	{}
};

static struct kunit_suite userfaultfd_check_test_suite = {
	.name = "userfaultfd_check",
	.init = needs_page_table_check,
	.test_cases = userfaultfd_check_test_cases,
};

kunit_test_suite(userfaultfd_check_test_suite);

MODULE_DESCRIPTION("Tests of the check of userfaultfd protection");
MODULE_LICENSE("GPL");
