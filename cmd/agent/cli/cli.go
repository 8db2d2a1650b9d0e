// Package cli is the command line: one file a command, the settings, and the
// wiring of the parts into a running agent.
//
// # Rules of output
//
// What was asked for goes to standard output, all else to standard error. An
// error is lower case, on one line, and says what was attempted and what is
// wrong with which value; its hint (problem.Hint) follows on a line of its own.
// Text from elsewhere (descriptions, reasons, the engine's words) is shown
// without control characters. JSON is for programs: with --json nothing else is
// printed to standard output. Nothing is coloured, nothing blinks, nothing asks.
// Who waits for longer than a second at a terminal is shown for what, on a line of
// standard error that is cleared again: see progress.
//
// Exit codes are a promise: see the constants.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"dtesn-agent/cmd/agent/signals"
	"dtesn-agent/cmd/agent/status"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// The exit codes of every command.
const (
	exitOK       = 0
	exitFault    = 1  // something could not be done
	exitUsage    = 2  // the command line or a setting is wrong
	exitInvalid  = 3  // the configuration is not valid, or the policy denies the change
	exitRejected = 4  // the engine rejected it
	exitChanges  = 10 // something changes, and --exit-code asks
)

// A failure is an error with an exit code of its own.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// quiet returns a failure that was reported already.
func quiet(code int) error { return &failure{code: code} }

func usage(format string, args ...any) error {
	return &failure{exitUsage, fmt.Errorf(format, args...)}
}

func usageHint(hint, format string, args ...any) error {
	return &failure{exitUsage, problem.New("", fmt.Errorf(format, args...), hint)}
}

// Main runs the command line of this process and returns its exit code. The
// first SIGINT or SIGTERM ends a command politely, the second at once.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // from here on a signal kills
	if !signals.IsServer {
		return Run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	}
	stdout, stderr := newOutput(os.Stdout), newOutput(os.Stderr)
	code := Run(ctx, os.Args[1:], stdout, stderr)
	begun := time.Now()
	stdout.flush(flushTime)
	stderr.flush(flushTime - time.Since(begun))
	return code
}

// Run carries out one command line.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	code := exitFault
	var f *failure
	if errors.As(err, &f) {
		code = f.code
		if f.err == nil {
			return code
		}
	}
	complain(stderr, err)
	return code
}

// complain writes an error, and its hint on a line of its own.
func complain(w io.Writer, err error) {
	fmt.Fprintf(w, "agent: %s\n", status.Plain(err.Error()))
	if hint := problem.Hint(err); hint != "" {
		fmt.Fprintf(w, "hint: %s\n", status.Plain(hint))
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "agent",
		Short: "Run the parameters of a live DTESN server the GitOps way",
		Long: `agent runs beside a DTESN server. It watches a directory of YAML, checks every
change against a schema, applies it hot over the server's Unix socket, records
each applied state as a commit that plain git can read, and goes back by itself
when the server rejects a change.

Exit codes: 0 ok, 1 fault, 2 usage, 3 invalid configuration or denied by
the policy, 4 rejected by the engine, by a required hook or on probation, 10
changes (plan --exit-code).`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate(versionLine())
	root.SetUsageFunc(func(cmd *cobra.Command) error {
		_, err := fmt.Fprint(cmd.OutOrStderr(), usageText(cmd))
		return err
	})
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageHint(flagHint(cmd, err), "%w", err)
	})
	root.AddCommand(
		newRun(), newEngine(), newValidate(), newPlan(), newComment(), newStatus(),
		newSnapshots(), newShow(), newDiff(), newAudit(), newReport(), newRollback(), newPause(), newResume(), newSync(),
		newInit(), newDoctor(), newSet(), newPromote(), newExport(), newLogLevel(), newPprof(), newSchema(), newVersion(), newEvaluatePolicy(),
	)
	for _, cmd := range root.Commands() {
		wrapArgs(cmd)
	}
	root.Args = unknownCommand
	return root
}

// wrapArgs makes a wrong number of arguments a usage error.
func wrapArgs(cmd *cobra.Command) {
	check := cmd.Args
	if check == nil {
		check = cobra.NoArgs
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageHint("usage: "+cmd.UseLine(), "%w", err)
		}
		return nil
	}
}

// exclusive makes more than one of these flags a usage error.
func exclusive(cmd *cobra.Command, flags ...string) {
	check := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		var set []string
		for _, name := range flags {
			if cmd.Flags().Changed(name) {
				set = append(set, "--"+name)
			}
		}
		if len(set) > 1 {
			return usage("%s cannot be combined", strings.Join(set, " and "))
		}
		if check != nil {
			return check(cmd, args)
		}
		return nil
	}
}

// unknownCommand answers a command that there is not.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	var names []string
	for _, c := range cmd.Commands() {
		names = append(names, c.Name())
	}
	hint := "`agent --help` lists the commands"
	if near, ok := schema.Suggest(args[0], names); ok {
		hint = "did you mean `agent " + near + "`?"
	}
	return usageHint(hint, "unknown command %q", args[0])
}

// flagHint names the flag that was probably meant.
func flagHint(cmd *cobra.Command, err error) string {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near, ok := schema.Suggest(unknown.GetSpecifiedName(), names); ok {
			return "did you mean --" + near + "?"
		}
	}
	return "`" + cmd.CommandPath() + " --help` lists the flags"
}
