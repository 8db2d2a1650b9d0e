package cli

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/coreos/go-systemd/v22/daemon"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/signals"
	"dtesn-agent/cmd/agent/status"
)

const (
	// notifyTime bounds one message: a service manager that does not read must
	// not keep the agent from ending.
	notifyTime = time.Second
	// reloadTime bounds a reload: a source that hangs is said in the status, and
	// the service manager need not wait for it.
	reloadTime = 5 * time.Second
	// notifyPoll is how often it is looked whether READY can be said.
	notifyPoll = 10 * time.Millisecond
	// maxNotice is the longest status line, in bytes.
	maxNotice = 400
)

// A notifier tells the service manager how the agent is, by sd_notify(3): READY
// once the loops turn and HTTP answers, which needs neither an engine nor a
// source; STATUS with each change; RELOADING and READY around a SIGHUP;
// WATCHDOG while every loop turns; STOPPING. Without a service manager it says
// nothing. What it says is decided on one goroutine, that of signals.
type notifier struct {
	manager *net.UnixAddr // nil: nobody listens
	log     *slog.Logger
	failing bool
	heard   string       // the last status line
	beat    *time.Ticker // for WATCHDOG; stopped if the manager does not ask for it
	over    func() bool  // READY can be said
	poll    *time.Ticker // for over; stopped while nothing is expected
}

// newNotifier finds the service manager in the environment and takes it out of
// there: nothing that is started from here speaks for the agent. A path that
// begins with @ is in the abstract namespace (unix(7)), as package net has it.
func newNotifier(logger *slog.Logger) *notifier {
	n := &notifier{log: logger, beat: time.NewTicker(time.Hour), poll: time.NewTicker(time.Hour)}
	n.beat.Stop()
	n.poll.Stop()
	if path := os.Getenv("NOTIFY_SOCKET"); path != "" {
		n.manager = &net.UnixAddr{Net: "unixgram", Name: path}
	}
	_ = os.Unsetenv("NOTIFY_SOCKET") // fails only for names that cannot be
	interval, err := daemon.SdWatchdogEnabled(true)
	if err != nil {
		logger.Warn("the service manager's watchdog is not understood, and gets no answer", "error", err)
	}
	if n.manager != nil && interval > 0 {
		n.beat.Reset(max(interval/2, time.Millisecond)) // as sd_watchdog_enabled(3) advises
	}
	return n
}

// send tells the manager. It has a deadline, which the library's SdNotify has
// not. What cannot be told is logged once, and is no fault of the agent.
func (n *notifier) send(lines ...string) (sent bool) {
	if n.manager == nil {
		return true
	}
	conn, err := net.DialUnix(n.manager.Net, nil, n.manager)
	if err == nil {
		_ = conn.SetWriteDeadline(time.Now().Add(notifyTime)) // fails only on a closed connection
		_, err = conn.Write([]byte(strings.Join(lines, "\n")))
		_ = conn.Close()
	}
	if err != nil && !n.failing {
		n.log.Warn("the service manager does not hear", "socket", n.manager.Name, "error", err)
	}
	n.failing = err != nil
	return !n.failing
}

// tell sends lines and, if it is another one than was heard last, the status
// line.
func (n *notifier) tell(s *apply.Status, lines ...string) (sent bool) {
	line := "STATUS=" + notice(s)
	if line != n.heard {
		lines = append(lines, line)
	}
	if len(lines) > 0 && !n.send(lines...) {
		return false
	}
	n.heard = line
	return true
}

// notice is how things stand in one line, in the words of `agent status`.
func notice(s *apply.Status) string {
	line := fmt.Sprintf("%s: %s", s.State, s.Reason)
	switch run := s.Running; {
	case s.Current == nil || !s.Engine.Reachable:
	case run.SnapshotID == "":
		line += "; runs what no record says"
	case !run.Confirmed:
		line += "; runs " + run.SnapshotID + ", not yet confirmed"
	default:
		line += "; runs " + run.SnapshotID
	}
	line = status.Plain(line)
	if len(line) > maxNotice {
		cut := maxNotice
		for !utf8.RuneStart(line[cut]) {
			cut--
		}
		line = line[:cut] + "…"
	}
	return line
}

// expect has READY sent as soon as over says so.
func (n *notifier) expect(over func() bool) {
	if n.manager != nil {
		n.over = over
		n.poll.Reset(notifyPoll)
	}
}

// signals is the part that listens to SIGHUP and speaks to the service
// manager. READY is not said before a SIGHUP would be heard, nor before the
// transaction turned after begun.
func (a *agent) signals(ctx context.Context, begun time.Time) error {
	n := a.notify
	defer n.poll.Stop()
	defer n.beat.Stop()
	n.expect(func() bool { return a.reconciler.Stamp().After(begun) })
	update := a.reconciler.Latest()
	for ctx.Err() == nil { // asked first: a manager that does not read makes every turn slow
		select {
		case <-ctx.Done():
		case <-signals.Hangup:
			n.send(daemon.SdNotifyReloading, strings.TrimSpace(daemon.SdNotifyMonotonicUsec()))
			since := time.Now()
			n.expect(func() bool { return a.sourceRead(since) || time.Since(since) > reloadTime })
			a.sync()
			a.reloadHooks()
		case <-n.poll.C:
			if n.over() && n.tell(a.reconciler.Status(), daemon.SdNotifyReady) {
				n.poll.Stop()
			}
		case <-update.Replaced():
			update = a.reconciler.Latest()
			n.tell(update.Status)
		case <-n.beat.C:
			if a.web.Stuck() == "" {
				n.send(daemon.SdNotifyWatchdog)
			}
		}
	}
	last := "STATUS=stopping; the engine keeps what it has"
	if a.embedded != nil {
		last = "STATUS=stopping, and the embedded engine with it"
	}
	n.send(daemon.SdNotifyStopping, last)
	return nil
}

// sourceRead reports whether the source was read, well or not, after since.
func (a *agent) sourceRead(since time.Time) bool {
	_, read, err := a.source.Status()
	return read.After(since) || err != nil && a.source.Stamp().After(since)
}
