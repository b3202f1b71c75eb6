-- wrk -t1 -c16 -d10 --latency -s post.lua http://127.0.0.1:8000/v1/models/lengths:predict
wrk.method = "POST"
wrk.body = '{"instances": ["abc"]}'
