"""EfficientNet-Lite0 in PyTorch, from its papers' tables and with its file's names."""

from torch import nn
from torch.nn import functional

TABLE = "1,3,1,1,16 2,3,2,6,24 2,5,2,6,40 3,3,2,6,80 3,5,1,6,112 4,5,2,6,192 1,3,1,6,320"


class Same(nn.Conv2d):
    """TensorFlow's "SAME": what the padding lacks in evenness is put behind."""

    def forward(self, x):
        kernel, stride = self.kernel_size[0], self.stride[0]
        ends = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            ends += [total // 2, total - total // 2]
        return super().forward(functional.pad(x, ends))


def norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    def __init__(self, inputs, kernel, stride, expansion, outputs):
        super().__init__()
        width = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = nn.Conv2d(inputs, width, 1, bias=False), norm(width)
        self._depthwise_conv = Same(width, width, kernel, stride, groups=width, bias=False)
        self._bn1 = norm(width)
        self._project_conv, self._bn2 = nn.Conv2d(width, outputs, 1, bias=False), norm(outputs)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = x
        if hasattr(self, "_expand_conv"):
            y = functional.relu6(self._bn0(self._expand_conv(y)))
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.is_residual else y


class Twin(nn.Module):
    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = Same(3, 32, 3, 2, bias=False), norm(32)
        self._blocks, inputs, self.ends = nn.ModuleList(), 32, {}
        for row in TABLE.split():
            repeats, kernel, stride, expansion, outputs = map(int, row.split(","))
            for i in range(repeats):
                block = Block(inputs, kernel, stride if i == 0 else 1, expansion, outputs)
                self._blocks.append(block)
                inputs = outputs
            self.ends[len(self._blocks) - 1] = str(outputs)
        self._conv_head, self._bn1 = nn.Conv2d(320, 1280, 1, bias=False), norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x):
        """Pooled taps of images [n, 3, h, w]."""
        taps = {}
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in self.ends:
                taps[self.ends[i]] = x.mean((2, 3))
        x = functional.relu6(self._bn1(self._conv_head(x)))
        taps["1280"] = x.mean((2, 3))
        return taps
