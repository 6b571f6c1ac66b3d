package cli

import (
	"time"

	urfave "github.com/urfave/cli/v2"
)

// TimeFlag is an option whose value is a time.
func TimeFlag(name, usage string) urfave.Flag { return &urfave.StringFlag{Name: name, Usage: usage} }

// TimeOf is the value of such an option, or now. Without a zone it is UTC.
func TimeOf(c *urfave.Context, name string) (time.Time, error) {
	text := c.String(name)
	if text == "" {
		return time.Now(), nil
	}
	for _, form := range []string{
		time.RFC3339, time.DateOnly, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateTime, "2006-01-02 15:04",
	} {
		if t, err := time.Parse(form, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, Usagef("--%s %q: must be a time such as 2026-11-27 or 2026-11-27T12:00:00Z", name, text)
}
