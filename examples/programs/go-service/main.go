// A web service as large as they get: server and client with TLS, templates, a database, profiles, and what reads and
// writes a dozen formats. It is asked once, without a network: what it brings with it is what there is to compile.
package main

import (
	"archive/zip"
	"compress/bzip2"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"debug/dwarf"
	"debug/elf"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"expvar"
	"fmt"
	"go/format"
	"go/types"
	"html/template"
	"image/jpeg"
	"image/png"
	"log/slog"
	"math/big"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/http/pprof"
	"net/mail"
	"net/rpc"
	"net/smtp"
	"os"
	"regexp"
	"text/tabwriter"
)

// What the linker may not leave out, as no call of it can be seen.
var parts = []any{
	bzip2.NewReader, dwarf.New, elf.NewFile, expvar.Handler, format.Source, gob.NewEncoder, jpeg.Decode, big.NewInt,
	mail.ReadMessage, multipart.NewReader, png.Decode, pprof.Index, regexp.MustCompile, rpc.NewServer, smtp.SendMail,
	tabwriter.NewWriter, types.NewChecker, x509.CreateCertificate, xml.NewEncoder, zip.NewReader,
}

func hello(w http.ResponseWriter, r *http.Request) {
	json.NewEncoder(w).Encode(map[string]any{"drivers": len(sql.Drivers()), "path": r.URL.Path})
}

// serve is what the service would do where there is a network.
func serve(address string) error {
	for _, part := range parts {
		slog.Info("has", "part", fmt.Sprint(part))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	database, err := sql.Open(address, fmt.Sprint(key))
	if err != nil {
		return err
	}
	if _, err := database.Query("select 1"); err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{}}}
	if _, err := client.Get(address); err != nil {
		return err
	}
	server := &http.Server{Addr: address, Handler: http.HandlerFunc(hello), TLSConfig: &tls.Config{}}
	return server.ListenAndServeTLS("certificate", "key")
}

func main() {
	if len(os.Args) > 1 {
		fmt.Println(serve(os.Args[1]))
		return
	}
	answer := httptest.NewRecorder()
	hello(answer, httptest.NewRequest("GET", "/hello", nil))
	page := template.Must(template.New("page").Parse("<pre>{{.}}</pre>"))
	if err := page.Execute(os.Stdout, answer.Body.String()); err != nil {
		fmt.Println(err)
	}
}
