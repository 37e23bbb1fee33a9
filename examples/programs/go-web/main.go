// A web handler asked once, without a network: what a Go program brings with it is what there is to compile.
package main

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
)

func main() {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{"drivers": len(sql.Drivers()), "path": r.URL.Path})
	})
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, httptest.NewRequest("GET", "/hello", nil))
	fmt.Print(answer.Body)
}
