package advice

import "github.com/vmlatch/vmlatch/launcher/fault"

// Row is a row of the table.
type Row struct {
	Pattern, Cause, Fix string
	Kind                fault.Kind
	Late                bool
}

// Rows is the table.
func Rows() (list []Row) {
	for _, r := range rows() {
		list = append(list, Row{r.pattern, r.cause, r.fix, r.kind, r.late})
	}
	return list
}

// Matches lists the rows whose patterns match QEMU's words.
func Matches(text string) (rows []int) {
	for i, p := range patterns() {
		if p.MatchString(decimal(text)) {
			rows = append(rows, i)
		}
	}
	return rows
}

// Sentinels are the errors that have advice of their own.
func Sentinels() (errs []error) {
	for _, row := range known {
		errs = append(errs, row.err)
	}
	return errs
}

// Decimal writes hexadecimal statuses as decimal ones.
func Decimal(text string) string { return decimal(text) }
