package main

import (
	"context"
	"errors"
	"net"

	"github.com/vmlatch/vmlatch/cmd/internal/sdnotify"
)

// service is the service manager that started this program; it may be none.
type service struct{ *sdnotify.Manager }

// theService finds the service manager, and the sockets that it passed.
func theService() (service, map[string][]net.Listener, error) {
	passed, err := sdnotify.Listeners()
	if err != nil {
		return service{}, nil, err
	}
	m, err := sdnotify.FromEnv()
	return service{m}, passed, err
}

// ready tells the manager that the broker serves.
func (s service) ready(ctx context.Context) error {
	if err := s.Ready(ctx, 0, "serving"); err != nil && !errors.Is(err, sdnotify.ErrSlow) {
		return err
	}
	return nil
}

// say shows a line in the unit's state.
func (s service) say(text string) { _ = s.Status("%s", text) }
