# Two commands do the work: `make demo` and `make test`. Each first sets up all it needs in .venv
# (ROS 2 wheels, torch, the messages); a second run starts at once.
PYTHON ?=
VENV ?= .venv
ARGS ?=
export PYTHON VENV

.DEFAULT_GOAL := help
.PHONY: help demo test train-debug soak fuzz latency signals robot-demo robot-trial clean

help: ## show this text
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' Makefile | expand -t 16
	@echo "Variables:"
	@echo "  ARGS          passed on, for example: make test ARGS='-k angles'"
	@echo "  PYTHON        interpreter, 3.10 to 3.13 (default: the first suitable one)"
	@echo "  VENV          the environment to use (default: .venv)"
	@echo "  LUSEEL_TORCH_INDEX  package index to take torch from (default: pip's own)"

demo: ## play a scene to the real node and check the sounds and directions it finds
	@tools/venv.sh setup demo
	@tools/venv.sh run python -m luseel_ros.demo $(ARGS)

test: ## run the tests
	@tools/venv.sh setup test
	@tools/venv.sh run python -m pytest test $(ARGS)

train-debug: ## try corpus, training and evaluation on generated sounds, in two minutes
	@tools/venv.sh setup train
	@rm -rf runs/train-debug
	@tools/venv.sh run python -m training.corpus toy --out data/toy
	@tools/venv.sh run python -m training.train --config debug --out runs/train-debug $(ARGS)
	@tools/venv.sh run python -m training.evaluate --checkpoint runs/train-debug/best.safetensors \
		--packed data/toy --heads mit_kemar --mixtures 12 --out runs/train-debug/evaluation

soak: ## play half an hour of audio to the node and look for losses and growing memory
	@tools/venv.sh setup test
	@tools/venv.sh run python tools/field/soak.py $(ARGS)

fuzz: ## send the node 10,000 random and malformed messages
	@tools/venv.sh setup test
	@tools/venv.sh run python tools/field/fuzz.py $(ARGS)

latency: ## measure the node's latency and overhead
	@tools/venv.sh setup test
	@tools/venv.sh run python tools/field/latency.py $(ARGS)

signals: ## measure how fast SIGINT and SIGTERM end the node
	@tools/venv.sh setup test
	@tools/venv.sh run python tools/field/signals.py $(ARGS)

robot-demo: ## drive a simulated robot to a crying baby: animation, picture, bag
	@tools/venv.sh setup test
	@OMP_NUM_THREADS=1 tools/venv.sh run python tools/robot/animate.py $(ARGS)

robot-trial: ## 50 simulated homes, three navigators, a table
	@tools/venv.sh setup test
	@OMP_NUM_THREADS=1 tools/venv.sh run python tools/robot/trial.py $(ARGS)

clean: ## remove the environment and everything that was built
	rm -rf $(VENV) build install log dist *.egg-info .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
