module keepfleet.example/go-web

go 1.27
