//go:build !linux

package remote

import "net"

func quickAck(*net.TCPConn) {}
