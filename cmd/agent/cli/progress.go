package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"dtesn-agent/cmd/agent/status"
)

// progressEvery is when the progress begins, and how often it is written again.
const progressEvery = time.Second

// clearLine returns to the beginning of a line and clears it (ECMA-48: CR, EL).
const clearLine = "\r\x1b[K"

// A progress is a line on a terminal that says what a command waits for, and for how
// long, once that takes more than a second. It is cleared before anything else is
// written. Nothing is written where there is no terminal, where TERM is dumb or empty,
// or while the command is in the background.
type progress struct {
	w io.Writer

	mu    sync.Mutex
	shown bool
}

// waitFor shows on standard error what a command waits for, until end is called.
func waitFor(cmd *cobra.Command, format string, args ...any) (end func()) {
	return (&progress{w: cmd.ErrOrStderr()}).show(func() string { return cmd.Name() + ": " + fmt.Sprintf(format, args...) })
}

// show shows what is waited for, until end is called.
func (p *progress) show(what func() string) (end func()) {
	f := terminal(p.w)
	if name := os.Getenv("TERM"); f == nil || name == "" || name == "dumb" {
		return func() {}
	}
	stop := make(chan struct{})
	var done sync.WaitGroup
	begun := time.Now()
	done.Go(func() {
		again := time.NewTicker(progressEvery)
		defer again.Stop()
		for {
			select {
			case <-stop:
				return
			case <-again.C:
				p.draw(f, fmt.Sprintf("%s (%s)", what(), time.Since(begun).Truncate(time.Second)))
			}
		}
	})
	return sync.OnceFunc(func() {
		close(stop)
		done.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.clear()
	})
}

// draw writes the line, as much of it as fits.
func (p *progress) draw(f *os.File, line string) {
	if group, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP); err == nil && group != unix.Getpgrp() {
		return
	}
	if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 1 {
		line = cut(status.Plain(line), width-1)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := io.WriteString(p.w, clearLine+line)
	p.shown = err == nil
}

func (p *progress) clear() {
	if p.shown {
		_, _ = io.WriteString(p.w, clearLine)
		p.shown = false
	}
}

// Write writes lines that come while something is waited for.
func (p *progress) Write(lines []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	return p.w.Write(lines)
}
