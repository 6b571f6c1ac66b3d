package predict

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
)

// Kept is a register of a table that a person keeps.
type Kept struct {
	Certainty string
	Value     []byte // nil if unknown
}

// ParseTable reads a table: lines with a number, words, and a value in hex for each bank, as
// latchkey pcrs prints them.
func ParseTable(b []byte, bank eventlog.Bank) (map[int]Kept, error) {
	table, column := map[int]Kept{}, 2
	lines := bufio.NewScanner(bytes.NewReader(b))
	found := false
	for n := 1; lines.Scan(); n++ {
		if strings.TrimSpace(lines.Text()) == "" && found { // what follows are measurements (--events)
			break
		}
		line, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if fields[0] == "PCR" {
			column = slices.IndexFunc(fields, func(f string) bool { return strings.EqualFold(f, bank.String()) })
			continue
		}
		pcr, err := strconv.Atoi(fields[0])
		if err != nil || pcr < 0 || pcr >= Registers || column >= len(fields) {
			return nil, fmt.Errorf("line %d: must be a number, its certainty, and values", n)
		}
		if column < 0 {
			return nil, fmt.Errorf("it has no values of the bank %v", bank)
		}
		if _, twice := table[pcr]; twice {
			return nil, fmt.Errorf("line %d: it has PCR %d twice", n, pcr)
		}
		row := Kept{Certainty: fields[1]}
		if text := fields[column]; text != "-" {
			if row.Value, err = hex.DecodeString(text); err != nil || len(row.Value) != bank.Hash().Size() {
				return nil, fmt.Errorf("line %d: %q is not a value of the bank %v", n, text, bank)
			}
			found = true
		}
		table[pcr] = row
	}
	if !found {
		return nil, errors.New("it has no value of a register")
	}
	return table, nil
}
