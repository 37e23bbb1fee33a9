module keepfleet.example/go-service

go 1.27
