package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"dtesn-agent/schema/problem"
)

// logLevels are the names of the levels of the log.
var logLevels = []string{"debug", "info", "warn", "error"}

// parseLevel reads one of logLevels.
func parseLevel(name string) (level slog.Level, err error) {
	if !slices.Contains(logLevels, strings.ToLower(name)) {
		return 0, fmt.Errorf("unknown level %q: want %s", name, strings.Join(logLevels, ", "))
	}
	return level, level.UnmarshalText([]byte(name))
}

func newLogLevel() *cobra.Command {
	var state string
	cmd := &cobra.Command{
		Use:   "log-level [LEVEL] --state DIR",
		Short: "Change what the running agent logs",
		Long: `log-level changes the least level that the running agent logs: debug, info, warn
or error. Without LEVEL it prints the one that is in force. The log says who
changed it. A restart goes back to --log-level.`,
		Example: `  agent log-level debug --state /var/lib/dtesn-agent
  agent log-level --state /var/lib/dtesn-agent`,
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: logLevels,
		RunE: func(cmd *cobra.Command, args []string) error {
			var o order
			if len(args) == 1 {
				if _, err := parseLevel(args[0]); err != nil {
					return usage("%w", err)
				}
				o.Level = args[0]
			}
			return give(cmd, state, "log-level", o)
		},
	}
	stateFlag(cmd, &state)
	return cmd
}

// logLevel answers POST /log-level. The line about it is written at any level.
func (c *control) logLevel(w http.ResponseWriter, q *http.Request) {
	o, who, ok := readOrder(w, q)
	if !ok {
		return
	}
	level := c.agent.settings.level
	old := level.Level()
	if o.Level != "" {
		want, err := parseLevel(o.Level)
		if err != nil {
			writeJSON(w, http.StatusBadRequest, orderResult{Error: err.Error()})
			return
		}
		level.Set(min(old, want, slog.LevelInfo))
		c.agent.log.Info("log level changed", "from", levelName(old), "to", levelName(want), "uid", who.UID, "user", who.User, "login", who.Login)
		level.Set(want)
	}
	writeJSON(w, http.StatusOK, orderResult{Text: levelName(level.Level())})
}

func levelName(l slog.Level) string { return strings.ToLower(l.String()) }

// profiles are what `agent pprof` can ask for; the last two are taken over a time.
var profiles = []string{"allocs", "goroutine", "heap", "profile", "trace"}

func newPprof() *cobra.Command {
	var state string
	var seconds int
	cmd := &cobra.Command{
		Use:   "pprof PROFILE --state DIR > FILE",
		Short: "Profile the running agent",
		Long: `pprof writes a profile of the running agent to standard output, for go tool
pprof: allocs, goroutine, heap, or profile (of the processor, over --seconds).
trace is for go tool trace. The same is at /debug/pprof/ of the control socket.`,
		Example: `  agent pprof heap --state /var/lib/dtesn-agent > heap.pprof
  agent pprof profile --seconds 10 --state /var/lib/dtesn-agent > cpu.pprof`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: profiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(profiles, args[0]) {
				return usage("there is no profile %q: want %s", args[0], strings.Join(profiles, ", "))
			}
			out := cmd.OutOrStdout()
			if seconds < 1 || seconds > 600 {
				return usage("--seconds: %d is out of range: 1 to 600", seconds)
			}
			if terminal(out) != nil {
				return usageHint(fmt.Sprintf("redirect it: agent pprof %s … > %s.pprof", args[0], args[0]), "a profile is not for a terminal")
			}
			path, patience := "/debug/pprof/"+args[0], answerTime
			if args[0] == "profile" || args[0] == "trace" {
				path += fmt.Sprint("?seconds=", seconds)
				patience += time.Duration(seconds) * time.Second
			}
			return exchange(cmd, state, http.MethodGet, path, nil, patience, func(resp *http.Response) error {
				if resp.StatusCode == http.StatusOK {
					_, err := io.Copy(out, resp.Body)
					return err
				}
				text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
				res := orderResult{}
				if json.Unmarshal(text, &res) != nil {
					res.Error = strings.TrimSpace(string(text))
				}
				return problem.New("", errors.New(res.Error), res.Hint)
			})
		},
	}
	stateFlag(cmd, &state)
	cmd.Flags().IntVar(&seconds, "seconds", 30, "how long profile and trace take")
	return cmd
}

// handleProfiles serves profiles to operators.
func handleProfiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", operators(pprof.Index))
	mux.HandleFunc("GET /debug/pprof/profile", operators(pprof.Profile))
	mux.HandleFunc("GET /debug/pprof/trace", operators(pprof.Trace))
}
