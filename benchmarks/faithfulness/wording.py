"""The text around the tables on the page of the documentation."""

OPENING = """\
# Methods on tasks with a known answer

`python -m benchmarks.faithfulness --markdown docs/faithfulness.md` writes this page, and
`--read benchmarks/results/faithfulness.json` writes it from [the committed
numbers](../benchmarks/results/faithfulness.json) without a measurement. Each method meets the
same examples and networks; `random`, the control, draws independent normal numbers. A method is
no better than random if its mean exceeds that of the control by at most two standard deviations
of their difference in one seed, in a measure that ignores the scale of the values: AUP on the
rare tasks, AUPRC on State, either correlation of the addition, and the share inside the square.

AUP and AUR are the areas under precision and recall of the salient cells as functions of the
threshold. Absolute values are scaled to [0, 1] in each series; the cells of all series of a
seed count together."""

#: Of each task.
INTRODUCTIONS = {
    "rare-feature": """\
A function of autoregressive series returns at each step the sum of the squares of the salient
cells: five random features at steps 12 to 37. Masks compare the outputs of all steps; the other
methods explain their sum.

All methods but the control give every other cell exactly or nearly 0, so this task tells them
apart by the AUR alone: how evenly they treat large and small salient cells. Gradient methods
and occlusion give each cell its square, and a random attribution has a higher AUR. The true
cells, as values 0 and 1, have an AUP of 0.525, so an AUP of 1 needs values in between. The
number of steps of the masks was chosen by these scores: after 200 steps the AUR of the extremal
mask is 0.929, and 0.885 on Rare-Time; after 500 steps it is higher on two seeds, but no value
is left near 0, and the AUP falls.""",
    "rare-time": """\
As before, but five consecutive steps of features 12 to 37 are salient. The gates of the
contrastive mask follow a smooth trend in time, which does not fit five steps: some cells beside
them have a value, and its AUP is the lowest of the masks.""",
    "state": """\
A hidden Markov state decides which of two features drives the label of a step; a third feature
never does. Both driving features reveal the state. A GRU of 200 units with a logit at each step
is trained on 800 series. The salient feature of a step is that of its state. Each method
explains the probability at each step by the series up to it, and the values of the last step
count, as in `ja.time_forward`; masks compare the probabilities of all steps. Values are taken
without their sign, but for FIT, where a negative importance is less than none. The baseline is
0.

The experiment of time-interpret explains the logit of the predicted class of a network with
two. With the logit of one such network as this instead of the probability, the AUPRC of
saliency is 0.96, and those of occlusion and integrated gradients change by less than 0.01. The
AUR of integrated gradients is 0.39 then: a few large values set the scale of a series.
Augmented occlusion here is the mean of the signed changes, there that of the absolute changes.

The network limits all methods. One trained with a constant learning rate in few large batches
is as accurate, but knows the hidden state less well, and the AUPRC of occlusion is 0.954. With
the exact posterior of the state in place of a network it is 0.98, and that of integrated
gradients 0.96. Multiplication by the input helps, because the salient feature tends to be far
from 0. A background of other series does not: many are in the other state, and a feature of
theirs changes what the network believes about the state. Half of the background of expected
gradients is zeros, as in the published experiment.""",
    "addition": """\
The task of Arras et al. 2019 (arXiv:1909.12114): an LSTM with one hidden unit adds the two
marked numbers of a sequence of 4 to 10. For each seed two networks are trained, and the better
one is explained. The table shows the correlation of the value of each marked time step with its
number, and the mean squared difference between the sum of both values and the output of the
network.

`epsilon` is in units of a pre-activation. These networks add in the linear range of tanh, with
a cell state of about 0.1 per number. An epsilon of 0.001, the default of `lrp`, absorbs about a
percent at every step; it should be much smaller than the states. LRP-half and LRP-prop give the
gates a share of the relevance. They fail: the signal must receive all relevance of its product
with a gate.""",
    "planted": """\
A bright or dark square of 3 x 3 pixels is planted at a random position of a real digit (14 x 14
pixels, with noise). It alone determines the class; the third class has no square. The table
shows the share of digits for which the largest value lies in the square; chance is 4.6 %.

The setting was chosen so that gradients can be informative; about twenty settings were tried,
and the docstring of `planted.py` gives the reasons. The noise is necessary. On clean digits the
border is always black, the network never sees a bright pixel there, and the gradient is often
largest there (saliency 51 %). With noise of standard deviation 0.1 saliency reaches 68 to 75 %.
The target is the logit of the square minus the logit of "none". The penalties of the mask are
set for these small images; with the defaults, which are made for 28 x 28 pixels, it reaches 61
to 74 %.""",
}
