"""The one configuration schema: every key with its meaning, unit and allowed values.

Sizes are ``[width, height]`` in pixels, as in the public HRNet files, whose model keys `ovenet.config.compat` knows.
"""

from __future__ import annotations

from yacs.config import CfgNode

VERSION = 2  # of the schema; 1 described the model as the public HRNet and OVeNet files do
PARTS = ("BACKBONE", "NECK", "HEAD", "SEED")  # sections of MODEL that take the arguments of the part they name, too
NO_SEED = "none"


def _cudnn() -> CfgNode:
    """cuDNN's switches."""
    c = CfgNode()
    c.BENCHMARK = True  # let cuDNN time its algorithms for each input size
    c.DETERMINISTIC = False  # only algorithms that repeat to the bit
    c.ENABLED = True  # use cuDNN at all
    return c


def _model() -> CfgNode:
    """The network and the weights it starts from: each part by its name, and arguments as its builder has them.

    ``python -c "import ovenet; help(ovenet.describe('head', 'ocr'))"`` shows them; docs/models.md has the table.
    """
    c = CfgNode()
    c.BACKBONE = CfgNode()
    c.BACKBONE.NAME = "hrnet_w48"  # a name of ovenet.list_backbones(), timm's among them
    c.BACKBONE.PRETRAINED = ""  # file to start from; timm for timm's weights; "" is the backbone's own way
    c.NECK = CfgNode()
    c.NECK.NAME = ""  # a name of ovenet.list_necks(); "" is the one that goes with the head
    c.HEAD = CfgNode()
    c.HEAD.NAME = "fcn"  # a name of ovenet.list_heads()
    c.SEED = CfgNode()
    c.SEED.NAME = NO_SEED  # where offsets come from, for an OVeNet: fork, shared or neck; none is the baseline
    c.SEED.PRETRAINED = ""  # fork only: file whose stages initialise the copied ones; "" starts them at random
    c.ALIGN_CORNERS = True  # in all resizing of maps: True for networks published with OCR, False for others, mmseg too
    c.BN_MOMENTUM = 0.0  # share of a batch in BatchNorm's statistics, in [0, 1]; 0 leaves the parts' own (HRNet: 0.1)
    c.FROZEN = []  # parts that are not trained: backbone, neck, head, seed, or modules in them (backbone.layer1)
    c.ALLOW_PARTIAL = False  # accept files that lack tensors: over 5 % of what training starts from, any in a test
    return c


def _loss() -> CfgNode:
    """The training loss."""
    c = CfgNode()
    c.USE_OHEM = False  # mine hard pixels in the final map
    c.OHEMTHRES = 0.9  # pixels below this probability of their class are hard, in (0, 1]
    c.OHEMKEEP = 100000  # minimum number of pixels kept per batch and process (approximate), >= 1
    c.CLASS_BALANCE = True  # weight the classes: as CLASS_WEIGHTS says or, without, as published for the dataset
    c.CLASS_WEIGHTS = ""  # audit.json of tools/audit_data.py, whose suggested weights are used; "" for none
    c.BALANCE_WEIGHTS = []  # weight per score map, auxiliary first; [] is [1] or, with OCR, [0.4, 1]
    c.TERMS = []  # [{NAME, WEIGHT, …arguments}], see ovenet.list_losses(); [] is what USE_OHEM says
    c.AVERAGE = "valid"  # cross-entropy (with OHEM: of auxiliary maps) is averaged over valid pixels, or over all
    c.KAPPA = 0.5  # κ, weight of the losses of the initial and the seed prediction, >= 0
    c.BACKEND = "auto"  # how it is computed: auto, plain, blocked or triton (CUDA); all give the same loss
    c.CONTRAST = CfgNode()  # between embeddings of pixels, for heads with EMBEDDING
    c.CONTRAST.WEIGHT = 0.0  # >= 0; 0 is none
    c.CONTRAST.START = 5000  # iterations before it counts, >= 0
    c.CONTRAST.MAX_SAMPLES = 1024  # pixels of a batch that are compared, >= 4
    c.CONTRAST.MAX_VIEWS = 100  # of them of a class in an image, >= 2; classes with no more pixels are left out
    c.LAMBDA = 1.0  # λ, weight of the confidence loss, >= 0
    c.CONFIDENCE_TARGET = "same_class"  # what it learns: same_class (the paper) or better_scores, see docs/models.md
    c.OFFSET = 0.0  # weight of a loss that draws seeds somewhere, >= 0; 0 is the paper
    c.OFFSET_TARGET = "same_class"  # same_class, or right_pixel: from wrong pixels to right ones, see docs/models.md
    c.FUSION_WARMUP = 0  # iterations over which the loss of the fused scores takes over from the initial ones', >= 0
    return c


def _dataset() -> CfgNode:
    """Where the data is."""
    c = CfgNode()
    c.ROOT = "data/"  # folder of the datasets and of list/
    c.DATASET = "cityscapes"  # a dataset of docs/data.md, or a folder ROOT/<name> with a dataset.json
    c.NUM_CLASSES = 19  # K; must be the dataset's
    c.TRAIN_SET = "list/cityscapes/train.lst"  # relative to ROOT: `image label` per line; written if it is missing
    c.TEST_SET = "list/cityscapes/val.lst"  # relative to ROOT: `image [label]` per line; val is list/<dataset>/val.lst
    c.SKIP_BROKEN = False  # train on the next sample in place of one that cannot be read; False ends the run
    c.AUDIT = 32  # pairs of image and label that are checked before training, >= 0; tools/audit_data.py checks all
    c.CACHE = "none"  # decoded training images: none, disk (in CACHE_DIR) or ram (shared memory of the machine)
    c.CACHE_DIR = ""  # folder of the disk cache; "" is ROOT/cache
    c.EXTRA_TRAIN_SET = ""  # list of the TRAIN.EXTRA_EPOCH epochs after TRAIN.END_EPOCH; "" is TRAIN_SET
    return c


def _train() -> CfgNode:
    """Augmentation, optimizer and schedule."""
    c = CfgNode()
    c.IMAGE_SIZE = [1024, 512]  # crop, [width, height]
    c.BASE_SIZE = 2048  # long side of the image at scale 1
    c.FLIP = True  # flip half of the samples
    c.MULTI_SCALE = True  # random scale 0.5, 0.6 … 0.5 + SCALE_FACTOR / 10
    c.SCALE_FACTOR = 16  # steps of 0.1 above 0.5, >= 0
    c.RANDOM_BRIGHTNESS = False  # shift the brightness of half of the samples
    c.RANDOM_BRIGHTNESS_SHIFT_VALUE = 10  # largest shift, in grey levels of 255
    c.SCALE_RANGE = []  # [low, high]: any scale between them in place of the steps of SCALE_FACTOR; [] for the steps
    c.BASE_BOX = []  # [long, short] side that the image fits into at scale 1, in place of BASE_SIZE; [] for that
    c.CAT_MAX_RATIO = 1.0  # largest share of one class in a crop, in (0, 1]; others are drawn anew, up to 10 times
    c.PHOTOMETRIC_DISTORTION = False  # brightness, contrast, saturation and hue at random
    c.RARE_CLASS_CROPS = 0.0  # share of crops around a pixel of an evenly drawn class, in [0, 1]
    c.OPTIMIZER = "sgd"  # sgd or adamw
    c.LR = 0.01  # at the first iteration, > 0; falls to LR_MIN as (1 - it/max)^LR_POWER
    c.LR_MIN = 0.0  # at the end, in [0, LR]
    c.LR_POWER = 0.9  # > 0
    c.LR_MULT = CfgNode()  # factors on the learning rate, by part
    c.LR_MULT.BACKBONE = 1.0  # > 0
    c.LR_MULT.HEAD = 1.0  # of neck and head, > 0
    c.LR_MULT.SEED = 1.0  # > 0
    c.LR_MULT.OFFSET_HEAD = 0.0  # of the seed's offset head, in place of SEED, >= 0; 0 is SEED
    c.MOMENTUM = 0.9  # sgd only, in [0, 1)
    c.WD = 0.0001  # weight decay, >= 0
    c.NESTEROV = False  # sgd only
    c.WARMUP = 0  # iterations in which the learning rate rises linearly from 0 to what the schedule says, >= 0
    c.PRECISION = "fp32"  # fp32, bf16 or fp16: of convolutions; losses and seed sampling are always float32
    c.TF32 = True  # CUDA: float32 convolutions and matrix products read 10 bits of mantissa; losses do not
    c.CUDA_GRAPH = "auto"  # auto launches a step's passes at once where that can be (CUDA, crops of one size), or off
    c.COMPILE = "none"  # torch.compile: none, blocks (seconds), default, reduce-overhead or max-autotune (minutes)
    c.ACCUMULATE = 1  # batches whose gradients are averaged in one iteration, >= 1
    c.SYNC_BN = True  # CUDA: BatchNorm counts the batches of all processes, two messages for each layer and step
    c.GRADIENT_COMPRESSION = "none"  # of what processes send each other: none, bf16 (half the bytes) or powersgd
    c.CHECKPOINT_ACTIVATIONS = False  # less memory for about a third more time: activations are computed twice
    c.CLIP_GRAD_NORM = 0.0  # longest gradient over all parameters, >= 0; 0 is no limit
    c.EMA = 0.0  # decay of averaged weights, in [0, 1); they are validated and saved too; 0 is none
    c.PARAM_GROUPS = "parts"  # parts, or official: as OffSeg's optimizer groups them, see docs/training.md
    c.NO_DECAY_ON_NORM = False  # no weight decay for biases and normalisation layers
    c.FREEZE_LAYERS = ""  # parts or modules of the backbone (layer1,stage2), with commas, that rest until FREEZE_EPOCHS
    c.FREEZE_EPOCHS = -1  # first epoch in which they learn
    c.IGNORE_LABEL = 255  # train id of ignored pixels; outside 0 … K-1
    c.BEGIN_EPOCH = 0  # number of the first epoch of a fresh run, >= 0
    c.END_EPOCH = 484  # number after the last epoch
    c.ITERATIONS = 0  # length of the training in iterations, in place of END_EPOCH; 0 is END_EPOCH
    c.RESUME = False  # go on from the run's checkpoint.pth, if it exists
    c.BATCH_SIZE_PER_GPU = 2  # crops per process and iteration, >= 1; BatchNorm needs 2 in all
    c.SHUFFLE = True  # new order every epoch
    c.NUM_SAMPLES = 0  # use only the first N lines of the list; 0 is all
    c.EVAL_INTERVAL = 1  # epochs between validations, >= 1; the last epoch is always validated
    c.EVAL_NUM_SAMPLES = 0  # validations take only the first N lines of what a test takes; 0 is all
    c.MAX_SKIPPED = 10  # end the run after N iterations in a row without a finite loss and gradient, >= 1
    c.CHECKPOINT_EVERY = 0  # iterations between checkpoints inside an epoch, >= 0; 0 is none
    c.CHECKPOINT_MINUTES = 0.0  # minutes between checkpoints inside an epoch, >= 0; 0 is none
    c.KEEP_CHECKPOINTS = 2  # newest checkpoints that are kept, >= 1
    c.EXTRA_EPOCH = 0  # epochs on DATASET.EXTRA_TRAIN_SET after END_EPOCH, >= 0
    c.EXTRA_LR = 0.001  # learning rate with which they begin; falls to 0 as (1 - it/max)^0.9, > 0
    return c


def _test() -> CfgNode:
    """Inference and evaluation."""
    c = CfgNode()
    c.IMAGE_SIZE = [2048, 1024]  # window, [width, height]; images that fit, or whose dataset says so, are run whole
    c.STRIDE = []  # [width, height] from window to window: overlapping windows for any dataset; [] for side by side
    c.BASE_SIZE = 2048  # long side of the image at scale 1; its short side for datasets whose rule says so
    c.BASE_BOX = []  # [long, short] side that the image fits into at scale 1, run whole; [] as the dataset is evaluated
    c.PROTOCOL = "default"  # sizes and windows of a test: default, the dataset's; or as the public code: ovenet, hrnet
    c.BATCH_SIZE_PER_GPU = 0  # windows and views per forward pass; 0 is 1, on CUDA what has 2^22 pixels together, >= 2
    c.MODEL_FILE = ""  # weights to test; "" is the run's best.pth, else its final_state.pth
    c.SCALE_LIST = [1.0]  # scales whose scores are averaged, > 0
    c.FLIP_TEST = False  # average with the flipped image
    c.SCORE = "softmax"  # averaged over scales: softmax; exp as HRNet and OVeNet do; mmseg: softmax of each flip
    c.OUTPUT_INDEX = -1  # which score map is scored: -1 the final one, 0 the auxiliary one (OCR)
    c.PRECISION = "fp32"  # fp32, bf16 or fp16: of convolutions; everything after the network is float32
    c.TF32 = True  # CUDA: float32 convolutions and matrix products read 10 bits of mantissa; False to compare scores
    c.CUDA_GRAPH = "auto"  # CUDA: auto makes batches of a size that comes again one launch each; off
    c.FUSE_CONV_BN = True  # fuse BatchNorm into convolutions: faster, scores differ in the last digits
    c.COMPILE = "none"  # torch.compile: none, default, reduce-overhead (CUDA graphs) or max-autotune; minutes per size
    c.RUNTIME = "torch"  # torch; on the CPU also onnxruntime, openvino, or auto, the fastest that is installed
    c.NUM_SAMPLES = 0  # use only the first N lines of the list; 0 is all
    c.SAVE_PREDICTIONS = False  # write id and colour PNGs
    c.DETAILS = True  # score edges, segment sizes, confidence and seeds too; IoU and its like alone are faster
    c.REPORT = False  # write report.html, with a gallery of the images (needs DETAILS)
    c.RESUME = False  # go on with an interrupted evaluation of the same weights, list and settings
    return c


def default_config() -> CfgNode:
    """A fresh, mutable configuration with every key at its default: HRNet-W48 on Cityscapes."""
    c = CfgNode()
    c.VERSION = VERSION  # of this schema; checkpoints carry it
    c.OUTPUT_DIR = "output"  # runs go to OUTPUT_DIR/<dataset>/<name of the config file>
    c.LOG_DIR = ""  # TensorBoard files go to LOG_DIR/<dataset>/<config>; "" puts them into the run's folder
    c.MLFLOW = ""  # experiment of MLflow that gets the numbers too (pip install mlflow); "" is none
    c.WANDB = ""  # project of Weights & Biases that gets the numbers too (pip install wandb); "" is none
    c.DEVICE = "auto"  # auto (CUDA where present), cpu or cuda
    c.WORKERS = 4  # data loading processes per training process, >= 0
    c.PRINT_FREQ = 20  # iterations between log lines and TensorBoard points, >= 1
    c.DIST_TIMEOUT = 1800  # seconds that a process waits for the others before it gives up, >= 1
    c.PIN_MEMORY = True  # page-locked batches (CUDA only)
    c.SEED = 0  # of weights, shuffling and augmentation, >= 0
    c.CUDNN = _cudnn()
    c.MODEL = _model()
    c.LOSS = _loss()
    c.DATASET = _dataset()
    c.TRAIN = _train()
    c.TEST = _test()
    return c


LISTS_OF_TEXTS = ("MODEL.FROZEN",)
LISTS_OF_TABLES = ("LOSS.TERMS",)  # all other lists hold numbers
