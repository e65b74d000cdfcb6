package transport_test

const followersEnv = "TIDEMARK_BENCH_FOLLOWERS"

func followers() {}
