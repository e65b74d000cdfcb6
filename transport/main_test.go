package transport_test

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(followersEnv) != "" {
		followers() // this process is the clients' side of a benchmark
		return
	}
	goleak.VerifyTestMain(m)
}
