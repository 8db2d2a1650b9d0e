package gitserver

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// A Cert is a certificate for 127.0.0.1 and host.test that is its own authority: for a server
// and for a client. Its files are PEM.
type Cert struct {
	Pair               tls.Certificate
	X509               *x509.Certificate
	CertFile, KeyFile  string
	CertBytes, KeyText []byte // PEM
}

// NewCert makes dir/NAME.crt and dir/NAME.key.
func NewCert(t testing.TB, dir, name string) Cert {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(30 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"host.test"},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, key)
	must(err)
	c := Cert{Pair: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, CertFile: filepath.Join(dir, name+".crt"), KeyFile: filepath.Join(dir, name+".key")}
	c.X509, err = x509.ParseCertificate(der)
	must(err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)
	c.CertBytes = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	c.KeyText = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	must(os.WriteFile(c.CertFile, c.CertBytes, 0o600))
	must(os.WriteFile(c.KeyFile, c.KeyText, 0o600))
	return c
}

// A TLSHost serves repositories by git http-backend over TLS.
type TLSHost struct {
	URL    string
	server *httptest.Server
	conf   atomic.Pointer[tls.Config]
}

// HTTPS is HTTP over TLS, with server's certificate, to clients that show
// theirs.
func HTTPS(t testing.TB, dir string, server, client Cert, wrap func(http.Handler) http.Handler) *TLSHost {
	t.Helper()
	h := &TLSHost{server: httptest.NewUnstartedServer(handler(t, dir, wrap))}
	h.server.TLS = &tls.Config{
		Certificates:       []tls.Certificate{server.Pair},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return h.conf.Load(), nil },
	}
	h.server.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are to fail
	h.Rotate(server, client)
	h.server.StartTLS()
	t.Cleanup(h.server.Close)
	h.URL = h.server.URL
	return h
}

// Rotate has the server show and ask for other certificates from now on, and
// ends its connections.
func (h *TLSHost) Rotate(server, client Cert) {
	clients := x509.NewCertPool()
	clients.AddCert(client.X509)
	h.conf.Store(&tls.Config{Certificates: []tls.Certificate{server.Pair}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert})
	h.server.CloseClientConnections()
}
