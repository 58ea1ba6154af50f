/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_USERFAULTFD_CHECK_H
#define _LINUX_USERFAULTFD_CHECK_H

#include <linux/mm_types.h>

/*
 * Checks that what userspace has protected through userfaultfd stays protected,
 * see Documentation/mm/userfaultfd_check.rst.
 */
#ifdef CONFIG_USERFAULTFD_CHECK

void userfaultfd_check_protect(struct mm_struct *mm, unsigned long addr,
			       unsigned long len);
void userfaultfd_check_drop(struct mm_struct *mm, unsigned long addr,
			    unsigned long len);
void userfaultfd_check_move(struct mm_struct *mm, unsigned long from,
			    unsigned long to, unsigned long len, bool kept);
void userfaultfd_check_fault(struct vm_area_struct *vma, unsigned long addr,
			     unsigned int flags);
void userfaultfd_check_exit(struct mm_struct *mm);
void userfaultfd_check_ptes(struct mm_struct *mm, unsigned long addr, pte_t pte,
			    unsigned int nr);
void userfaultfd_check_pmds(struct mm_struct *mm, unsigned long addr, pmd_t pmd,
			    unsigned int nr);
bool userfaultfd_check_is_protected(struct mm_struct *mm, unsigned long addr);

#else

static inline void userfaultfd_check_protect(struct mm_struct *mm,
					     unsigned long addr,
					     unsigned long len)
{
}

static inline void userfaultfd_check_drop(struct mm_struct *mm,
					  unsigned long addr,
					  unsigned long len)
{
}

static inline void userfaultfd_check_move(struct mm_struct *mm,
					  unsigned long from, unsigned long to,
					  unsigned long len, bool kept)
{
}

static inline void userfaultfd_check_fault(struct vm_area_struct *vma,
					   unsigned long addr,
					   unsigned int flags)
{
}

static inline void userfaultfd_check_exit(struct mm_struct *mm)
{
}

static inline void userfaultfd_check_ptes(struct mm_struct *mm,
					  unsigned long addr, pte_t pte,
					  unsigned int nr)
{
}

static inline void userfaultfd_check_pmds(struct mm_struct *mm,
					  unsigned long addr, pmd_t pmd,
					  unsigned int nr)
{
}

#endif /* CONFIG_USERFAULTFD_CHECK */

#endif /* _LINUX_USERFAULTFD_CHECK_H */
