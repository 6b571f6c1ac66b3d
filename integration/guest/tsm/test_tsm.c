// SPDX-License-Identifier: GPL-2.0-only
/*
 * A provider for the kernel's own configfs-tsm (Linux 6.12), with the attributes of sev-guest or
 * tdx-guest and reports that say nothing. Tests hold the emulated configfs-tsm of swtee against
 * the kernel's with it.
 */
#include <linux/cleanup.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/tsm.h>

static bool tdx;
module_param(tdx, bool, 0444);
MODULE_PARM_DESC(tdx, "show what tdx-guest shows, not what sev-guest does");

#define REPORT_SIZE 1184

static u32 count;

static int report_new(struct tsm_report *report, void *data)
{
	u8 *buf;

	if (report->desc.inblob_len != TSM_INBLOB_MAX)
		return -EINVAL;
	buf = kvzalloc(REPORT_SIZE, GFP_KERNEL);
	if (!buf)
		return -ENOMEM;
	memcpy(buf, report->desc.inblob, TSM_INBLOB_MAX);
	count++;
	memcpy(buf + TSM_INBLOB_MAX, &count, sizeof(count));
	report->outblob = buf;
	report->outblob_len = REPORT_SIZE;
	return 0;
}

static bool attr_visible(int n)
{
	switch (n) {
	case TSM_REPORT_GENERATION:
	case TSM_REPORT_PROVIDER:
		return true;
	case TSM_REPORT_PRIVLEVEL:
	case TSM_REPORT_PRIVLEVEL_FLOOR:
		return !tdx;
	}
	return false;
}

static bool bin_attr_visible(int n)
{
	switch (n) {
	case TSM_REPORT_INBLOB:
	case TSM_REPORT_OUTBLOB:
		return true;
	case TSM_REPORT_AUXBLOB:
		return !tdx;
	}
	return false;
}

static struct tsm_ops ops = {
	.report_new = report_new,
	.report_attr_visible = attr_visible,
	.report_bin_attr_visible = bin_attr_visible,
};

static int __init test_tsm_init(void)
{
	ops.name = tdx ? "tdx_guest" : "sev_guest";
	return tsm_register(&ops, NULL);
}

static void __exit test_tsm_exit(void)
{
	tsm_unregister(&ops);
}

module_init(test_tsm_init);
module_exit(test_tsm_exit);
MODULE_DESCRIPTION("provider of reports that say nothing, for tests");
MODULE_LICENSE("GPL");
