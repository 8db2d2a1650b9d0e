// Command agent runs a live DTESN server's parameters the GitOps way; see
// `agent --help` and package cli.
package main

import (
	"os"

	"dtesn-agent/cmd/agent/cli"
)

func main() { os.Exit(cli.Main()) }
