"""The one configuration schema: every key with its meaning, unit and allowed values.

Sizes are ``[width, height]`` in pixels, as in the public HRNet files. Keys listed in `INERT_KEYS` are accepted because
public files carry them, and do nothing; whoever sets one is told so once.
"""

from __future__ import annotations

from yacs.config import CfgNode

PLAIN_NAMES = ("seg_hrnet", "branched_seg_hrnet")
OCR_NAMES = ("seg_hrnet_ocr",)
MODEL_NAMES = PLAIN_NAMES + OCR_NAMES


def _stage(num_branches: int, block: str, channels: list[int], blocks: int, modules: int) -> CfgNode:
    node = CfgNode()
    node.NUM_MODULES = modules  # exchange units in a row, >= 1
    node.NUM_BRANCHES = num_branches  # resolutions; equals the stage's number
    node.NUM_RANCHES = num_branches  # how the public files misspell NUM_BRANCHES for stage 1
    node.BLOCK = block  # BASIC or BOTTLENECK
    node.NUM_BLOCKS = [blocks] * num_branches  # residual blocks per resolution
    node.NUM_CHANNELS = channels  # width per resolution, before the block's expansion (BOTTLENECK: 4)
    node.FUSE_METHOD = "SUM"  # SUM is the only one
    return node


def _cudnn() -> CfgNode:
    """cuDNN's switches."""
    c = CfgNode()
    c.BENCHMARK = True  # let cuDNN time its algorithms for each input size
    c.DETERMINISTIC = False  # only algorithms that repeat to the bit
    c.ENABLED = True  # use cuDNN at all
    return c


def _extra() -> CfgNode:
    """Widths and depths of the stages, and what makes an OVeNet."""
    c = CfgNode()
    c.FINAL_CONV_KERNEL = 1  # size of the semantic head's last convolution: 1 or 3
    c.FINAL_CONV_SEED = 1  # no effect, see INERT_KEYS
    c.CONFIDENCE = 0  # no effect, see INERT_KEYS
    c.OFFSET_BRANCH = 0  # first stage that the offset branch copies: 2, 3 or 4; 0 is the baseline
    c.OFFSET_THRESHOLD = 0.5  # τ, longest offset per axis; the image spans 2; > 0
    c.ITERATIVE_REFINEMENT = 0  # times that an offset is prolonged by the offset at its seed, >= 0
    c.LOGITS = True  # fuse logits (True) or probabilities (False)
    c.STAGE1 = _stage(1, "BOTTLENECK", [64], blocks=4, modules=1)
    c.STAGE2 = _stage(2, "BASIC", [48, 96], blocks=4, modules=1)
    c.STAGE3 = _stage(3, "BASIC", [48, 96, 192], blocks=4, modules=4)
    c.STAGE4 = _stage(4, "BASIC", [48, 96, 192, 384], blocks=4, modules=3)
    # The offset branch's own copies; those before stage OFFSET_BRANCH are not used.
    c.STAGE2_2 = _stage(2, "BASIC", [48, 96], blocks=4, modules=1)
    c.STAGE3_2 = _stage(3, "BASIC", [48, 96, 192], blocks=4, modules=3)
    c.STAGE4_2 = _stage(4, "BASIC", [48, 96, 192, 384], blocks=4, modules=2)
    return c


def _model() -> CfgNode:
    """The network and the weights it starts from."""
    c = CfgNode()
    c.NAME = "seg_hrnet"  # seg_hrnet, seg_hrnet_ocr, branched_seg_hrnet; OVeNet where EXTRA.OFFSET_BRANCH is set
    c.PRETRAINED = ""  # file that initialises the main network; "" starts it at random
    c.OFFSET_PRETRAINED = ""  # file whose main stages initialise the offset branch; "" starts it at random
    c.ALLOW_PARTIAL = False  # accept files that lack tensors: over 5 % of what training starts from, any in a test
    c.FREEZED_PAR = False  # train the offset branch and the offset head alone
    c.ALIGN_CORNERS = True  # convention of all score upsampling; published models: True
    c.NUM_OUTPUTS = 1  # no effect, see INERT_KEYS

    c.OCR = CfgNode()
    c.OCR.MID_CHANNELS = 512  # width of pixel and region features
    c.OCR.KEY_CHANNELS = 256  # width of the attention's queries and keys
    c.OCR.DROPOUT = 0.05  # probability of dropping a channel before the classifier, in [0, 1)
    c.OCR.SCALE = 1  # no effect, see INERT_KEYS

    c.EXTRA = _extra()
    return c


def _loss() -> CfgNode:
    """The training loss."""
    c = CfgNode()
    c.USE_OHEM = False  # mine hard pixels in the final map
    c.OHEMTHRES = 0.9  # pixels below this probability of their class are hard, in (0, 1]
    c.OHEMKEEP = 100000  # at least about so many pixels per batch and process are kept, >= 1
    c.CLASS_BALANCE = True  # weight the classes: as CLASS_WEIGHTS says or, without, as published for the dataset
    c.CLASS_WEIGHTS = ""  # audit.json of tools/audit_data.py, whose suggested weights are used; "" for none
    c.BALANCE_WEIGHTS = []  # weight per score map, auxiliary first; [] is [1] or, with OCR, [0.4, 1]
    c.KAPPA = 0.5  # κ, weight of the losses of the initial and the seed prediction, >= 0
    c.ENGINE = "auto"  # how it is computed: auto, plain, blocked or triton (CUDA); all give the same loss
    c.LAMBDA = 1.0  # λ, weight of the confidence loss, >= 0
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
    c.FLIP = True  # mirror half of the samples
    c.MULTI_SCALE = True  # random scale 0.5, 0.6 … 0.5 + SCALE_FACTOR / 10
    c.SCALE_FACTOR = 16  # steps of 0.1 above 0.5, >= 0
    c.RANDOM_BRIGHTNESS = False  # shift the brightness of half of the samples
    c.RANDOM_BRIGHTNESS_SHIFT_VALUE = 10  # largest shift, in grey levels of 255
    c.RARE_CLASS_CROPS = 0.0  # share of crops around a pixel of an evenly drawn class, in [0, 1]
    c.OPTIMIZER = "sgd"  # sgd or adamw
    c.LR = 0.01  # at the first iteration, > 0; falls to 0 as (1 - it/max)^0.9
    c.NONBACKBONE_KEYWORDS = []  # parts of published names (cls, aux, ocr) that learn at LR · NONBACKBONE_MULT
    c.NONBACKBONE_MULT = 10.0  # > 0
    c.MOMENTUM = 0.9  # sgd only, in [0, 1)
    c.WD = 0.0001  # weight decay, >= 0
    c.NESTEROV = False  # sgd only
    c.WARMUP = 0  # iterations in which the learning rate rises linearly from 0 to what the schedule says, >= 0
    c.PRECISION = "fp32"  # fp32, bf16 or fp16: of convolutions; losses and seed sampling are always float32
    c.TF32 = True  # CUDA: float32 convolutions and matrix products read 10 bits of mantissa; losses do not
    c.COMPILE = "none"  # torch.compile: none, default, reduce-overhead (CUDA graphs) or max-autotune; minutes to begin
    c.ACCUMULATE = 1  # batches whose gradients are averaged in one iteration, >= 1
    c.CHECKPOINT_ACTIVATIONS = False  # less memory for about a third more time: activations are computed twice
    c.CLIP_GRAD_NORM = 0.0  # longest gradient over all parameters, >= 0; 0 is no limit
    c.EMA = 0.0  # decay of averaged weights, in [0, 1); they are validated and saved too; 0 is none
    c.NO_DECAY_ON_NORM = False  # spare biases and BatchNorm's parameters the weight decay
    c.FREEZE_LAYERS = ""  # parts of published parameter names, with commas, that rest until FREEZE_EPOCHS
    c.FREEZE_EPOCHS = -1  # first epoch in which they learn
    c.IGNORE_LABEL = 255  # train id of pixels that do not count; outside 0 … K-1
    c.BEGIN_EPOCH = 0  # number of the first epoch of a fresh run, >= 0
    c.END_EPOCH = 484  # number after the last epoch
    c.RESUME = False  # go on from the run's checkpoint.pth, if it exists
    c.BATCH_SIZE_PER_GPU = 2  # crops per process and iteration, >= 1; BatchNorm needs 2 in all
    c.SHUFFLE = True  # new order every epoch
    c.NUM_SAMPLES = 0  # use the first so many lines of the list; 0 is all
    c.EVAL_INTERVAL = 1  # epochs between validations, >= 1; the last epoch is always validated
    c.MAX_SKIPPED = 10  # so many iterations in a row without a finite loss and gradient end the run, >= 1
    c.CHECKPOINT_EVERY = 0  # iterations between checkpoints inside an epoch, >= 0; 0 is none
    c.CHECKPOINT_MINUTES = 0.0  # minutes between checkpoints inside an epoch, >= 0; 0 is none
    c.KEEP_CHECKPOINTS = 2  # newest checkpoints that are kept, >= 1
    c.DOWNSAMPLERATE = 1  # no effect, see INERT_KEYS
    c.LR_FACTOR = 0.1  # no effect, see INERT_KEYS
    c.LR_STEP = [90, 110]  # no effect, see INERT_KEYS
    c.EXTRA_EPOCH = 0  # epochs on DATASET.EXTRA_TRAIN_SET after END_EPOCH, >= 0
    c.EXTRA_LR = 0.001  # learning rate with which they begin; falls to 0 as (1 - it/max)^0.9, > 0
    c.OFFSET_DIR = ""  # no effect, see INERT_KEYS
    return c


def _test() -> CfgNode:
    """Inference and evaluation."""
    c = CfgNode()
    c.IMAGE_SIZE = [2048, 1024]  # window, [width, height]; images that fit, or whose dataset says so, are run whole
    c.BASE_SIZE = 2048  # long side of the image at scale 1; its short side for datasets whose rule says so
    c.BATCH_SIZE_PER_GPU = 1  # windows and views per forward pass, >= 1
    c.MODEL_FILE = ""  # weights to test; "" is the run's best.pth, else its final_state.pth
    c.SCALE_LIST = [1.0]  # scales whose scores are averaged, > 0
    c.FLIP_TEST = False  # average with the mirrored image
    c.SCORE = "softmax"  # softmax, or exp: sum exp(score) over scales as the public implementation did
    c.OUTPUT_INDEX = -1  # which score map is scored: -1 the final one, 0 the auxiliary one (OCR)
    c.PRECISION = "fp32"  # fp32, bf16 or fp16: of convolutions; everything after the network is float32
    c.TF32 = False  # CUDA: float32 convolutions and matrix products read 10 bits of mantissa
    c.FOLD_BATCHNORM = True  # fold BatchNorm into convolutions: faster, scores differ in the last digits
    c.COMPILE = "none"  # torch.compile: none, default, reduce-overhead (CUDA graphs) or max-autotune; minutes per size
    c.NUM_SAMPLES = 0  # use the first so many lines of the list; 0 is all
    c.SAVE_PREDICTIONS = False  # write id and colour PNGs
    c.DETAILS = True  # score edges, segment sizes, confidence and seeds too; IoU and its like alone are faster
    c.REPORT = False  # write report.html, with a gallery of the images (needs DETAILS)
    c.RESUME = False  # go on with an interrupted evaluation of the same weights, list and settings
    c.VISUALIZATION = False  # no effect, see INERT_KEYS
    c.MULTI_SCALE = False  # no effect, see INERT_KEYS
    c.CENTER_CROP_TEST = False  # no effect, see INERT_KEYS
    return c


def _debug() -> CfgNode:
    """Keys of the public files only."""
    c = CfgNode()
    c.DEBUG = False  # no effect, see INERT_KEYS
    c.SAVE_BATCH_IMAGES_GT = False  # no effect, see INERT_KEYS
    c.SAVE_BATCH_IMAGES_PRED = False  # no effect, see INERT_KEYS
    c.SAVE_HEATMAPS_GT = False  # no effect, see INERT_KEYS
    c.SAVE_HEATMAPS_PRED = False  # no effect, see INERT_KEYS
    return c


def default_config() -> CfgNode:
    """A fresh, mutable configuration with every key at its default: HRNet-W48 on Cityscapes."""
    c = CfgNode()
    c.OUTPUT_DIR = "output"  # runs go to OUTPUT_DIR/<dataset>/<name of the config file>
    c.LOG_DIR = ""  # TensorBoard files go to LOG_DIR/<dataset>/<config>; "" puts them into the run's folder
    c.WANDB = ""  # project of Weights & Biases that gets the numbers too (pip install wandb); "" is none
    c.DEVICE = "auto"  # auto (CUDA where present), cpu or cuda
    c.WORKERS = 4  # data loading processes per training process, >= 0
    c.PRINT_FREQ = 20  # iterations between log lines and TensorBoard points, >= 1
    c.DIST_TIMEOUT = 1800  # seconds that a process waits for the others before it gives up, >= 1
    c.PIN_MEMORY = True  # page-locked batches (CUDA only)
    c.SEED = 0  # of weights, shuffling and augmentation, >= 0
    c.GPUS = (0,)  # no effect, see INERT_KEYS
    c.AUTO_RESUME = False  # no effect, see INERT_KEYS
    c.RANK = 0  # no effect, see INERT_KEYS
    c.CUDNN = _cudnn()
    c.MODEL = _model()
    c.LOSS = _loss()
    c.DATASET = _dataset()
    c.TRAIN = _train()
    c.TEST = _test()
    c.DEBUG = _debug()
    return c


LISTS_OF_TEXTS = ("TRAIN.NONBACKBONE_KEYWORDS",)  # all other lists hold numbers

# What to do instead; keys of public files that have no effect here.
INERT_KEYS: dict[str, str] = {
    "GPUS": "the number of processes decides: torchrun --nproc_per_node=N",
    "AUTO_RESUME": "use TRAIN.RESUME",
    "RANK": "the launcher sets it",
    "MODEL.NUM_OUTPUTS": "MODEL.NAME decides: 2 with OCR, else 1",
    "MODEL.OCR.SCALE": "attention is always scaled by KEY_CHANNELS^-0.5",
    "MODEL.EXTRA.FINAL_CONV_SEED": "the offset head's last convolution is 1x1",
    "MODEL.EXTRA.CONFIDENCE": "the confidence is always predicted",
    "TRAIN.DOWNSAMPLERATE": "crops are never downsampled",
    "TRAIN.LR_FACTOR": "the schedule is polynomial",
    "TRAIN.LR_STEP": "the schedule is polynomial",
    "TRAIN.OFFSET_DIR": "offsets are shown in TensorBoard",
    "TEST.VISUALIZATION": "use TEST.SAVE_PREDICTIONS",
    "TEST.MULTI_SCALE": "TEST.SCALE_LIST decides",
    "TEST.CENTER_CROP_TEST": "the whole image is always tested",
    "DEBUG.DEBUG": "pictures go to TensorBoard every epoch",
    "DEBUG.SAVE_BATCH_IMAGES_GT": "pictures go to TensorBoard every epoch",
    "DEBUG.SAVE_BATCH_IMAGES_PRED": "pictures go to TensorBoard every epoch",
    "DEBUG.SAVE_HEATMAPS_GT": "pictures go to TensorBoard every epoch",
    "DEBUG.SAVE_HEATMAPS_PRED": "pictures go to TensorBoard every epoch",
}
