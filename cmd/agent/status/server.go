// Package status is the read-only HTTP endpoint: what runs, why, since when,
// and what was tried, in the shapes of the DTESN server's own /v1/config API,
// with metrics, health and a dry run. It shows apply.Status, one immutable
// value, and shares no lock with an apply. Nothing can be changed here: the
// paths that change a server answer 405 and say how it is done instead.
package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/hooks"
	"dtesn-agent/dtesn/bounded"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// A Source says how things stand; *apply.Reconciler is one.
type Source interface {
	Status() *apply.Status
	Latest() *apply.Update
}

// A History reads the snapshot repository; it is safe for concurrent use.
type History interface {
	List(ctx context.Context, before string, limit int) ([]record.Row, error)
	Lookup(ctx context.Context, id string) (record.Row, error)
}

// Options are what a Server is made of.
type Options struct {
	Source  Source
	History History
	Events  Events
	Rules   *schema.Rules
	Metrics *Metrics
	// Loops says when each loop last turned; one that has not for Stuck (15 s
	// if 0) is reported by /livez.
	Loops  func() map[string]time.Time
	Stuck  time.Duration
	Logger *slog.Logger
	// Hooks returns how the hooks are; nil if there can be none.
	Hooks func() []hooks.Status
	// HookErrors returns what is wrong with the file of hooks; nil if there can be none.
	HookErrors func() []error
	// SourceURL is the address of a line at the team's git host, with {commit}, {file} and
	// {line}; "" if there is none.
	SourceURL string
	// AllowedHosts are names that a Host header may have, besides those of loopback.
	AllowedHosts []string
	// Access says who may use Handler; nil is everybody.
	Access *Access
}

// A Server answers GET, HEAD and the dry run.
type Server struct {
	opt       Options
	rendering rendering
	encoded   encoding
}

// New makes a Server; Serve starts it.
func New(opt Options) *Server {
	if opt.Stuck <= 0 {
		opt.Stuck = 15 * time.Second
	}
	opt.Metrics.show(opt.Source, opt.Hooks)
	opt.Access.register(opt.Metrics.registry)
	return &Server{opt: opt}
}

// Full returns the status with what the agent's other parts know.
func (s *Server) Full() *FullStatus {
	f := &FullStatus{Status: *s.opt.Source.Status(), Hooks: []hooks.Status{}, HookErrors: []string{}, AccessErrors: s.opt.Access.Problems()}
	if s.opt.Hooks != nil {
		f.Hooks = s.opt.Hooks()
	}
	if s.opt.HookErrors != nil {
		for _, err := range s.opt.HookErrors() {
			f.HookErrors = append(f.HookErrors, inForce(err))
		}
	}
	if s.opt.Events != nil && s.opt.Events.Problem() != nil {
		f.EventsError = s.opt.Events.Problem().Error()
	}
	f.RegisteredCallbacks = len(f.Hooks)
	return f
}

// A FullStatus is apply.Status with how the hooks are.
type FullStatus struct {
	apply.Status
	Hooks []hooks.Status `json:"hooks"`
	// HookErrors say what is wrong with the file of --hooks.
	HookErrors []string `json:"hook_errors"`
	// EventsError says why events cannot be recorded; meanwhile nobody is told any.
	EventsError string `json:"events_error"`
	// AccessErrors say which files of --listen cannot be used, or are out of date.
	AccessErrors []string `json:"access_errors"`
}

// CheckAddress reports what is wrong with an address to listen on.
func CheckAddress(addr string) error {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return problem.New("", fmt.Errorf("%q is not an address: %w", addr, err), "use an address such as 127.0.0.1:9310")
	}
	return nil
}

// Listen takes an address for the flag that names it.
func Listen(flag, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &problem.Error{
			Op: "listen on", Place: addr, Err: errors.New("it is in use by another program"),
			Hint: fmt.Sprintf("choose another address with %s, such as 127.0.0.1:0 for any free port", flag),
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// Serve answers on listener until ctx ends.
func (s *Server) Serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := bounded.New(s.opt.Logger, listener.Addr().String(), handler)
	server.Busy = 2 * time.Second
	return server.ServeUntil(ctx, listener, 2*time.Second)
}

// base is where the engine's own API lies, and ours.
const base = "/v1/config/"

// changing are the engine's paths that change something, and what to do here.
var changing = map[string]string{
	"update":       "edit the configuration files; the agent applies what they declare",
	"batch-update": "edit the configuration files; the agent applies what they declare",
	"rollback":     "use the command: agent rollback [ID] --reason TEXT --state DIR",
	"environment":  "an agent has one environment for life: agent run --environment NAME",
}

// guarded answers 500 where handler panics, and logs it: a fault in one answer
// neither ends the agent nor goes unseen. Every answer is about now, so that
// none may be cached, and for nobody to show in a page of theirs.
func (s *Server) guarded(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		s.opt.Logger.Debug("HTTP request", "method", q.Method, "path", q.URL.Path, "remote", q.RemoteAddr)
		defer func() {
			r := recover()
			if r == http.ErrAbortHandler {
				panic(r) // not a fault: the way to drop a connection
			}
			if r != nil {
				s.opt.Logger.Error("answering an HTTP request panicked", "method", q.Method, "path", q.URL.Path, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
				fail(w, http.StatusInternalServerError, "this is a fault of the agent; its log says more")
			}
		}()
		h := w.Header()
		if q.URL.Path != base+"validate" { // nothing else reads a body, so none is waited for
			if q.ContentLength != 0 {
				h.Set("Connection", "close")
			}
			q.Body = http.NoBody
		}
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		handler.ServeHTTP(w, q)
	})
}

// Handler is the whole endpoint, for who may use it.
func (s *Server) Handler() http.Handler {
	light, rules, history, unread := make(turns, maxWork), make(turns, 1), make(turns, 1), make(turns, maxUnread)
	ofHistory := func(handler http.HandlerFunc) http.Handler { return unread.while(history.work(handler)) }
	gets := map[string]http.Handler{
		"/":                light.work(http.HandlerFunc(s.page)),
		base + "current":   light.work(http.HandlerFunc(s.current)),
		base + "status":    light.work(http.HandlerFunc(s.status)),
		base + "health":    light.work(http.HandlerFunc(s.health)),
		base + "schema":    rules.work(http.HandlerFunc(s.schema)),
		base + "events":    http.HandlerFunc(s.events),
		"/live":            http.HandlerFunc(s.live),
		base + "snapshots": ofHistory(s.snapshots), base + "snapshots/{id}": ofHistory(s.snapshot), base + "diff/{id}": ofHistory(s.diff),
	}
	mux := s.healthMux(light, gets)
	mux.Handle("POST "+base+"validate", rules.work(http.HandlerFunc(s.validate)))
	mux.HandleFunc(base+"validate", notAllowed("POST", "for a dry run, POST "+dryRun))
	for path, way := range changing {
		mux.HandleFunc(base+path, notAllowed("", "this endpoint changes nothing: "+way))
	}
	return s.guarded(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		code, why := s.foreign(q)
		isAllowed := code == 0 && s.opt.Access.allows(q)
		if !isAllowed && q.ContentLength != 0 {
			w.Header().Set("Connection", "close") // the body is not waited for
		}
		if q.TLS != nil && code == 0 && !isLoopbackName(q.Host) {
			w.Header().Set("Strict-Transport-Security", "max-age=31536000") // RFC 6797
		}
		switch {
		case code != 0:
			fail(w, code, why)
		case !isAllowed:
			s.opt.Access.deny(w, q)
		default:
			mux.ServeHTTP(w, q)
		}
	}))
}

// HealthHandler answers only /livez, /readyz and /metrics.
func (s *Server) HealthHandler() http.Handler {
	return s.guarded(s.healthMux(make(turns, maxWork), nil))
}

// healthMux is a mux with the health paths, which take the turns given, and gets; each
// answers HEAD too, and 405 to all else. What is not there is 404 and says what is.
func (s *Server) healthMux(light turns, gets map[string]http.Handler) *http.ServeMux {
	paths := map[string]http.Handler{
		"/livez": light.work(http.HandlerFunc(s.livez)), "/readyz": light.work(http.HandlerFunc(s.readyz)), "/metrics": light.work(s.opt.Metrics.handler()),
	}
	for path, handler := range gets {
		paths[path] = handler
	}
	mux := http.NewServeMux()
	var names []string
	if gets != nil {
		names = append(names, base+"validate")
	}
	for path, handler := range paths {
		names = append(names, path)
		if path == "/" {
			path = "/{$}"
		}
		mux.Handle("GET "+path, handler)
		mux.HandleFunc(path, notAllowed("GET, HEAD", "this path is only read"))
	}
	slices.Sort(names)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		fail(w, http.StatusNotFound, "there is no such path; there are "+strings.Join(names, " "))
	})
	return mux
}

// notAllowed answers 405 to every method that has no handler of its own.
func notAllowed(allow, words string) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Allow", allow)
		fail(w, http.StatusMethodNotAllowed, "method "+q.Method+" not allowed: "+words)
	}
}

// reply writes v as JSON.
func reply(w http.ResponseWriter, code int, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		code, text = http.StatusInternalServerError, []byte(`{"success":false,"message":"the answer cannot be encoded"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(text)+1))
	w.WriteHeader(code)
	_, _ = w.Write(append(text, '\n')) // who asked is gone if this fails
}

func fail(w http.ResponseWriter, code int, message string) {
	reply(w, code, map[string]any{"success": false, "message": message})
}

func text(w http.ResponseWriter, code int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(body))
}

// Stuck names the loops that do not turn any more; "" when all do.
func (s *Server) Stuck() string {
	var stuck []string
	for name, stamp := range s.opt.Loops() {
		if age := time.Since(stamp); age > s.opt.Stuck {
			stuck = append(stuck, fmt.Sprintf("the %s loop has not turned for %s", name, age.Round(time.Second)))
		}
	}
	slices.Sort(stuck)
	return strings.Join(stuck, "; ")
}

func (s *Server) livez(w http.ResponseWriter, _ *http.Request) {
	if stuck := s.Stuck(); stuck != "" {
		text(w, http.StatusServiceUnavailable, stuck+"\n")
		return
	}
	text(w, http.StatusOK, "ok\n")
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	if st := s.opt.Source.Status(); !st.Ready {
		text(w, http.StatusServiceUnavailable, st.Unready+"\n")
		return
	}
	text(w, http.StatusOK, "ok\n")
}
