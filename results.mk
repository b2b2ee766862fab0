# The figures of docs/results/fashion.md: each target ranks all rows of its table in one run. Dataset, stores and
# trainings are made once, under RESULTS, and shared.
#   make results-table CATALOG=fashion.zip ENCODER=mobilenet.tflite        LAYOUT=fashion for the public archive
#   make results-table CATALOG=fashion_224.zip ENCODER=mobilenet.tflite RESULTS=runs/results-224
RESULTS ?= runs/results
SEED ?= 0

.PHONY: results-table results-curve results-ablations results-teacher

DATA := $(RESULTS)/data
PARTS := train validation test
INPUTS := encoder pixels colours edges
INPUT_STORES := $(foreach input,$(INPUTS),$(PARTS:%=$(RESULTS)/$(input)/%))
ADAPTED := $(RESULTS)/adapted
TRAINED := blended scratch distilled
FEATURES = $(foreach input,$(INPUTS),$(PARTS:%=--features=$(input)=$(RESULTS)/$(input)/%))
IS_FILE = $(filter %.npz %.npy %.parquet %.csv,$(ENCODER))
FROM_encoder = $(if $(IS_FILE),--embeddings,--model)="$(ENCODER)"
FROM_pixels := --model=pixels:16x12
FROM_colours := --model=colours:6x7x7
FROM_edges := --model=edges:8x6x8

$(DATA)/audit.json: | $(READY)
	$(RUN) data --catalog="$(CATALOG)" --layout=$(LAYOUT) --output=$(DATA) --seed=$(SEED) $(SPLITS)

# The manifest of a store comes last, so it is there when the store is.
$(INPUT_STORES:%=%/manifest.json): $(RESULTS)/%/manifest.json: $(DATA)/audit.json | $(ENCODER_NEEDS)
	$(RUN) embed $(FROM_$(*D)) --dataset=$(DATA) --split=$(*F) --output=$(@D)

$(RESULTS)/adapter/ended: $(INPUT_STORES:%=%/manifest.json)
	$(RUN) train --config=configs/adapter.py --config.evaluation.split=validation --dataset=$(DATA) --workdir=$(@D) $(FEATURES)
	@touch $@

$(RESULTS)/blended/ended: $(RESULTS)/adapter/ended
	$(RUN) blend --config=$(CONFIG) --model=$(RESULTS)/adapter --dataset=$(DATA) --output=$(@D) $(FEATURES)
	@touch $@

$(ADAPTED)/train/manifest.json $(ADAPTED)/test/manifest.json: $(ADAPTED)/%/manifest.json: $(RESULTS)/adapter/ended
	$(RUN) embed --model=$(RESULTS)/adapter --dataset=$(DATA) --split=$* --output=$(@D) $(FEATURES)

$(RESULTS)/distilled/ended: $(ADAPTED)/train/manifest.json
	$(RUN) train --config=configs/distilled.py --config.evaluation.split=validation --config.teacher.store=$(ADAPTED)/train \
	  --dataset=$(DATA) --workdir=$(@D)
	@touch $@

$(RESULTS)/scratch/ended: $(DATA)/audit.json
	$(RUN) train --config=$(CONFIG) --config.evaluation.split=validation --dataset=$(DATA) --workdir=$(@D)
	@touch $@

MODEL_blended := $(RESULTS)/blended/model $(FEATURES)
MODEL_scratch := $(RESULTS)/scratch
MODEL_distilled := $(RESULTS)/distilled

$(TRAINED:%=$(RESULTS)/embedded/%/manifest.json): $(RESULTS)/embedded/%/manifest.json: $(RESULTS)/%/ended
	$(RUN) embed --model=$(MODEL_$*) --dataset=$(DATA) --output=$(@D)

results-table: $(ADAPTED)/test/manifest.json $(TRAINED:%=$(RESULTS)/embedded/%/manifest.json)  ## the table of docs/results: encoder, PCA, from scratch, distilled, blended, adapter (CATALOG=, ENCODER=)
	$(RUN) rank --config=$(CONFIG) --dataset=$(DATA) --output=$(RESULTS)/table.html \
	  --baseline=random --baseline="raw pixels" --baseline="title TF-IDF" \
	  --store=encoder=$(RESULTS)/encoder/test --fit=encoder=$(RESULTS)/encoder/train --reduce=encoder=pca:128 \
	  --store="from scratch"=$(RESULTS)/embedded/scratch --store=distilled=$(RESULTS)/embedded/distilled \
	  --store=blended=$(RESULTS)/embedded/blended \
	  --store=adapter=$(ADAPTED)/test --reduce=adapter=truncate:128 --against=encoder

# Examples seen are equal in all rows of a table. The bias follows the batch, and so does nothing else.
OVER_STORES = $(RUN) bench recipes --config=configs/adapter.py --relevance=$(CONFIG) --dataset=$(DATA) $(FEATURES) \
  --store=encoder=$(RESULTS)/encoder/test
BATCH_2K := --config.steps=250 --config.batch_size=2048 --config.optimizer.warmup_steps=10 --config.model.init_bias=-8.0
BATCH_128 := batch_size=128, steps=4000, optimizer.warmup_steps=160, model.init_bias=-5.2
BATCH_512 := batch_size=512, steps=1000, optimizer.warmup_steps=40, model.init_bias=-6.6
BATCH_8K := batch_size=8192, steps=63, optimizer.warmup_steps=3, model.init_bias=-9.4
BATCH_LARGEST := batch_size=31744, steps=16, optimizer.warmup_steps=1, model.init_bias=-10.7

results-curve: $(INPUT_STORES:%=%/manifest.json)  ## a learning curve: the adapter on 1k, 5k, 15k and all pairs
	$(OVER_STORES) --workdir=$(RESULTS)/curve --against=encoder \
	  --recipe="1k pairs: data.most=1000" --recipe="5k pairs: data.most=5000" --recipe="15k pairs: data.most=15000"

results-ablations: $(INPUT_STORES:%=%/manifest.json)  ## loss, batch, groups, prefixes of an adapter, one by one
	$(OVER_STORES) $(BATCH_2K) --workdir=$(RESULTS)/ablations \
	  --recipe="seed 1: seed=1" --recipe="softmax: loss=softmax" \
	  --recipe="batch 128: $(BATCH_128)" --recipe="batch 512: $(BATCH_512)" \
	  --recipe="batch 8k: $(BATCH_8K)" --recipe="batch 31k: $(BATCH_LARGEST)" \
	  --recipe="groups mean: same_group=mean" --recipe="groups ignored: same_group=ignore" \
	  --recipe="groups as negatives: same_group=negative" \
	  --recipe="no prefixes: matryoshka.widths=(), matryoshka.weights=()" \
	  --reduce="as configured=truncate:128" --reduce="as configured=pca:128" \
	  --reduce="no prefixes=truncate:128" --reduce="no prefixes=pca:128"

# An eighth of the steps of configs/distilled.py for each row.
results-teacher: $(ADAPTED)/train/manifest.json  ## weights of the teacher, for a small tower of images
	$(RUN) bench recipes --config=configs/distilled.py --relevance=$(CONFIG) --dataset=$(DATA) --workdir=$(RESULTS)/teacher \
	  --config.teacher.store=$(ADAPTED)/train --config.steps=800 --store=encoder=$(RESULTS)/encoder/test \
	  --recipe="teacher 0: teacher.cosine=0.0" --recipe="teacher 1: teacher.cosine=1.0" \
	  --recipe="teacher 3: teacher.cosine=3.0" --recipe="teacher 30: teacher.cosine=30.0" \
	  --recipe="neighbours 10: teacher.cosine=0.0, teacher.similarity=10.0"
