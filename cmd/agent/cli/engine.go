package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"

	"github.com/spf13/cobra"

	"dtesn-agent/dtesn/engine"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// A byteSize is a flag value such as 512MiB.
type byteSize int64

var byteSizePattern = regexp.MustCompile(`^([0-9]{1,15})(|KiB|MiB|GiB)$`)

func (b *byteSize) String() string {
	for _, u := range []struct {
		name string
		size int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n := int64(*b); n >= u.size && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(*b), 10)
}

// Set reads a number of bytes, or of KiB, MiB or GiB.
func (b *byteSize) Set(text string) error {
	m := byteSizePattern.FindStringSubmatch(text)
	if m == nil {
		return errors.New("a size is a number of bytes, or a number with KiB, MiB or GiB behind it")
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	shift := map[string]uint{"": 0, "KiB": 10, "MiB": 20, "GiB": 30}[m[2]]
	if err != nil || n == 0 || n<<shift>>shift != n {
		return errors.New("that size is zero or too large")
	}
	*b = byteSize(n << shift)
	return nil
}

// Type names the value in the help text.
func (b *byteSize) Type() string { return "size" }

func newEngine() *cobra.Command {
	var socket, environment string
	limit := byteSize(512 << 20)
	cmd := &cobra.Command{
		Use:   "engine --socket PATH",
		Short: "Run the reference engine alone",
		Long: `engine runs the reference DTESN engine on a Unix socket: a real echo state
network behind the API of a DTESN server, to try the agent with and to test
against. It refuses what does not fit into --memory-limit.`,
		Example: `  agent engine --socket /tmp/engine.sock
  agent engine --socket /tmp/engine.sock --memory-limit 64MiB \
    --environment production`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if socket == "" {
				return usageHint("a path for the socket, such as /tmp/engine.sock", "--socket is needed")
			}
			if environment != "" {
				if _, err := schema.Default().ParseEnvironment(environment); err != nil {
					return usage("--environment: %w", err)
				}
			}
			logger := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			e, err := engine.New(engine.Options{Environment: environment, MemoryLimit: int64(limit), Logger: logger})
			if err != nil {
				return err
			}
			listener, err := engine.Listen(socket)
			if err != nil {
				return err
			}
			defer listener.Close()
			fmt.Fprintf(cmd.OutOrStdout(), "the engine listens on %s (try: curl --unix-socket %s http://engine/v1/config/current)\n", socket, problem.ShellWord(socket))
			return e.Serve(cmd.Context(), listener)
		},
	}
	f := cmd.Flags()
	f.StringVar(&socket, "socket", "", "the `path` of the Unix socket to listen on (needed)")
	f.Var(&limit, "memory-limit", "what the engine may hold; larger configurations are refused")
	f.StringVar(&environment, "environment", "", "the only environment it serves; any if not given")
	completeEnvironment(cmd)
	return cmd
}
