// SPDX-License-Identifier: GPL-2.0
/*
 * Checks that what userspace has protected through userfaultfd stays protected.
 *
 * A shadow of each mm holds which pages are protected. It is written where userspace
 * says so, and never where an entry is carried from one form to another. Whoever
 * puts a present entry without the uffd bit where the shadow says protected is
 * reported. See Documentation/mm/userfaultfd_check.rst.
 */
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/userfaultfd_k.h>
#include <linux/xarray.h>

#define MAX_REPORTS	16

/* The protected pages of an mm: a bitmap for each PMD_SIZE in which there are any */
struct shadow {
	struct xarray bitmaps;
	/* There was no memory once: what is known is not all. */
	bool incomplete;
};

/* By the address of the mm. Most have none. */
static DEFINE_XARRAY(shadows);

static atomic_t nr_reports = ATOMIC_INIT(0);

static struct shadow *shadow_of(struct mm_struct *mm)
{
	return xa_load(&shadows, (unsigned long)mm);
}

/* Under a page table lock: no sleeping */
static struct shadow *make_shadow(struct mm_struct *mm)
{
	struct shadow *shadow = shadow_of(mm), *old;

	if (shadow)
		return shadow;

	shadow = kzalloc_obj(*shadow, GFP_ATOMIC | __GFP_NOWARN);
	if (!shadow)
		return NULL;
	xa_init(&shadow->bitmaps);

	old = xa_cmpxchg(&shadows, (unsigned long)mm, NULL, shadow,
			 GFP_ATOMIC | __GFP_NOWARN);
	if (!old)
		return shadow;
	kfree(shadow);
	return xa_is_err(old) ? NULL : old;
}

static unsigned long *make_bitmap(struct shadow *shadow, unsigned long index)
{
	unsigned long *bitmap = xa_load(&shadow->bitmaps, index), *old;

	if (bitmap)
		return bitmap;

	bitmap = bitmap_zalloc(PTRS_PER_PTE, GFP_ATOMIC | __GFP_NOWARN);
	if (!bitmap)
		return NULL;
	old = xa_cmpxchg(&shadow->bitmaps, index, NULL, bitmap,
			 GFP_ATOMIC | __GFP_NOWARN);
	if (!old)
		return bitmap;
	bitmap_free(bitmap);
	return xa_is_err(old) ? NULL : old;
}

static unsigned int bit_of(unsigned long addr)
{
	return (addr & ~PMD_MASK) >> PAGE_SHIFT;
}

/**
 * userfaultfd_check_protect() - userspace has protected pages
 * @mm: Whose.
 * @addr: Of the first page.
 * @len: In bytes, whole pages.
 *
 * To be called where UFFDIO_WRITEPROTECT, UFFDIO_RWPROTECT, UFFDIO_COPY and the
 * like, or PAGEMAP_SCAN protect a page, or put a marker for it.
 *
 * Context: The lock of the page table is held. Does not sleep; if there is no
 * memory, the mm is not checked anymore.
 */
void userfaultfd_check_protect(struct mm_struct *mm, unsigned long addr,
			       unsigned long len)
{
	struct shadow *shadow = make_shadow(mm);
	unsigned long end = addr + len;

	if (!shadow)
		return;

	for (; addr < end; addr += PAGE_SIZE) {
		unsigned long *bitmap = make_bitmap(shadow, addr >> PMD_SHIFT);

		if (!bitmap) {
			WRITE_ONCE(shadow->incomplete, true);
			return;
		}
		set_bit(bit_of(addr), bitmap);
	}
}

/**
 * userfaultfd_check_drop() - pages are not protected anymore, or will not be
 * @mm: Whose.
 * @addr: Of the first page.
 * @len: In bytes, whole pages.
 *
 * To be called before entries change, where userspace lifts the protection, or
 * does what drops it by definition.
 *
 * Context: Any, from which the address range cannot be protected meanwhile.
 */
void userfaultfd_check_drop(struct mm_struct *mm, unsigned long addr,
			    unsigned long len)
{
	struct shadow *shadow = shadow_of(mm);
	unsigned long end = addr + len, index, *bitmap;

	if (!shadow || !len)
		return;

	xa_for_each_range(&shadow->bitmaps, index, bitmap, addr >> PMD_SHIFT,
			  (end - 1) >> PMD_SHIFT) {
		unsigned long at = max(addr, index << PMD_SHIFT);

		for (; at < end && at >> PMD_SHIFT == index; at += PAGE_SIZE)
			clear_bit(bit_of(at), bitmap);
	}
}

/**
 * userfaultfd_check_move() - mremap() has moved pages
 * @mm: Whose.
 * @from: Where the first page was.
 * @to: Where it is.
 * @len: In bytes, whole pages.
 * @kept: Whether the new mapping is registered like the old one.
 *
 * Context: The mmap_lock is held for writing. Does not sleep.
 */
void userfaultfd_check_move(struct mm_struct *mm, unsigned long from,
			    unsigned long to, unsigned long len, bool kept)
{
	unsigned long at;

	if (!shadow_of(mm))
		return;

	userfaultfd_check_drop(mm, to, len);
	for (at = 0; kept && at < len; at += PAGE_SIZE)
		if (userfaultfd_check_is_protected(mm, from + at))
			userfaultfd_check_protect(mm, to + at, PAGE_SIZE);
	userfaultfd_check_drop(mm, from, len);
}

/**
 * userfaultfd_check_fault() - a fault may resolve the protection of its page
 * @vma: The VMA.
 * @addr: The address.
 * @flags: The flags of the fault.
 *
 * In the async modes, an access that is protected against resolves the protection:
 * of its page for a write, and of a huge page that is mapped as such for RWP.
 *
 * Context: The mmap_lock or the lock of the VMA is held.
 */
void userfaultfd_check_fault(struct vm_area_struct *vma, unsigned long addr,
			     unsigned int flags)
{
	unsigned long size = PAGE_SIZE;

	if (userfaultfd_rwp_async(vma))
		size = PMD_SIZE;
	else if (!(flags & FAULT_FLAG_WRITE) || !userfaultfd_wp_async(vma))
		return;
	if (is_vm_hugetlb_page(vma))
		size = huge_page_size(hstate_vma(vma));

	userfaultfd_check_drop(vma->vm_mm, addr & ~(size - 1), size);
}

/**
 * userfaultfd_check_exit() - forget an mm
 * @mm: The mm, without users.
 *
 * Context: The mmap_lock is held for writing. Does not sleep.
 */
void userfaultfd_check_exit(struct mm_struct *mm)
{
	struct shadow *shadow = xa_erase(&shadows, (unsigned long)mm);
	unsigned long index, *bitmap;

	if (!shadow)
		return;

	xa_for_each(&shadow->bitmaps, index, bitmap)
		bitmap_free(bitmap);
	xa_destroy(&shadow->bitmaps);
	kfree(shadow);
}

/**
 * userfaultfd_check_is_protected() - what the shadow says of a page
 * @mm: Whose.
 * @addr: Of the page.
 *
 * Return: Whether userspace has protected it, as far as that is known.
 */
bool userfaultfd_check_is_protected(struct mm_struct *mm, unsigned long addr)
{
	struct shadow *shadow = shadow_of(mm);
	unsigned long *bitmap;

	if (!shadow || READ_ONCE(shadow->incomplete))
		return false;

	bitmap = xa_load(&shadow->bitmaps, addr >> PMD_SHIFT);
	return bitmap && test_bit(bit_of(addr), bitmap);
}

static void check_range(struct mm_struct *mm, unsigned long addr, unsigned long len,
			unsigned long long entry)
{
	unsigned long end = addr + len;

	if (xa_empty(&shadows) || !shadow_of(mm))
		return;

	for (; addr < end; addr += PAGE_SIZE) {
		if (!userfaultfd_check_is_protected(mm, addr))
			continue;
		if (atomic_inc_return(&nr_reports) <= MAX_REPORTS)
			WARN(1, "userfaultfd_check: %#lx is protected, but not by its new entry %#llx\n",
			     addr, entry);
		/* Once for each loss */
		userfaultfd_check_drop(mm, addr, PAGE_SIZE);
	}
}

/**
 * userfaultfd_check_ptes() - check PTEs that are about to be set
 * @mm: Whose.
 * @addr: Of the first page.
 * @pte: The first of them.
 * @nr: How many, of pages that follow each other.
 *
 * Warns if a page of them is protected, and the PTEs are present without the uffd bit,
 * or writable. The page is forgotten then.
 *
 * Context: The lock of the page table is held.
 */
void userfaultfd_check_ptes(struct mm_struct *mm, unsigned long addr, pte_t pte,
			    unsigned int nr)
{
	if (pte_present(pte) && (!pte_uffd(pte) || pte_write(pte)))
		check_range(mm, addr, nr * PAGE_SIZE, pte_val(pte));
}

/**
 * userfaultfd_check_pmds() - check PMDs that are about to be set
 * @mm: Whose.
 * @addr: Of the first page.
 * @pmd: The first of them.
 * @nr: How many, of huge pages that follow each other.
 *
 * See userfaultfd_check_ptes(). Page tables are none of its business.
 */
void userfaultfd_check_pmds(struct mm_struct *mm, unsigned long addr, pmd_t pmd,
			    unsigned int nr)
{
	if (pmd_present(pmd) && pmd_leaf(pmd) && (!pmd_uffd(pmd) || pmd_write(pmd)))
		check_range(mm, addr, nr * PMD_SIZE, pmd_val(pmd));
}
