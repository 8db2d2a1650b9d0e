package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"dtesn-agent/dtesn/engine"
	"dtesn-agent/schema/problem"
)

// socketLook is how often is looked whether a socket of ours is still there.
const socketLook = 2 * time.Second

// A place is a path in the state directory and the socket that was made there.
type place struct {
	path string
	made os.FileInfo
}

func placeOf(path string) (place, error) {
	info, err := os.Lstat(path)
	return place{path, info}, err
}

// stands reports whether the path leads to the socket that was made.
func (p place) stands() bool {
	info, err := os.Lstat(p.path)
	return err == nil && os.SameFile(info, p.made)
}

// displaced waits until the socket is gone from its path, or ctx ends; an error
// is that of who serves it, from done.
func (p place) displaced(ctx context.Context, done <-chan error) error {
	look := time.NewTicker(socketLook)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-done:
			return err
		case <-look.C:
			if !p.stands() {
				return nil
			}
		}
	}
}

// again makes the socket of p anew, by listen, once the state directory is there
// and this agent's; false if ctx ends before. what is its name in the log.
func (a *agent) again(ctx context.Context, what, path string, listen func() error) bool {
	look := time.NewTicker(socketLook)
	defer look.Stop()
	said := false
	for {
		if a.store.Holding() {
			err := listen()
			if err == nil {
				a.log.Info("the "+what+" was gone, and is there again", "socket", path)
				return true
			}
			if !said {
				a.log.Warn("the "+what+" is gone", "socket", path, "error", problem.Text(err))
				said = true
			}
		} else {
			_ = a.reader.Close() // it pins the disk too, and opens again what it needs
		}
		select {
		case <-ctx.Done():
			return false
		case <-look.C:
		}
	}
}

// listenEngine makes the socket of the embedded engine.
func (a *agent) listenEngine() (err error) {
	if err := a.clearSocket(a.socket); err != nil {
		return err
	}
	if a.engineListener, err = engine.Listen(a.socket); err != nil {
		return err
	}
	a.enginePlace, err = placeOf(a.socket)
	return err
}

// serveEngine serves the embedded engine until ctx ends. When its socket is gone,
// with the disk or by hand, it lets go of it and makes it again.
func (a *agent) serveEngine(ctx context.Context) error {
	for {
		serving, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- a.embedded.Serve(serving, a.engineListener) }()
		err := a.enginePlace.displaced(ctx, done)
		stop()
		if err != nil {
			return err
		}
		if err := <-done; err != nil || ctx.Err() != nil {
			return err
		}
		if !a.again(ctx, "embedded engine's socket", a.socket, a.listenEngine) {
			return nil
		}
	}
}

// clearSocket sets aside what is no socket where one of ours belongs. The lock on
// the state directory is held by this process.
func (a *agent) clearSocket(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&os.ModeSocket != 0 {
		return nil // what else is amiss, listening says
	}
	name := filepath.Base(path)
	kept := filepath.Join("set-aside", name+"-"+time.Now().UTC().Format("20060102T150405.000000000Z"))
	state, err := os.OpenRoot(a.settings.state) // a link leads to nothing outside
	if err == nil {
		err = errors.Join(state.MkdirAll("set-aside", 0o700), state.Rename(name, kept), state.Close())
	}
	if err != nil {
		return problem.New("", fmt.Errorf("%s is in the way: it is not a socket, and cannot be set aside: %w", path, err), "move it away")
	}
	a.log.Warn("what was no socket was set aside", "path", path, "kept", filepath.Join(a.settings.state, kept))
	return nil
}
