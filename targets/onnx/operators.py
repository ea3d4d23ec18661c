"""Operators that an ONNX file may have: pure functions of tensors, known to ONNX Runtime.

Left out are loops and scans, random numbers, sequences, optional values, texts, images, and
whatever runs code of another's. A model that needs another operator needs a row here.
"""

from __future__ import annotations

_STANDARD = (
    "Abs Acos Add And ArgMax ArgMin Asin Atan Attention AveragePool BatchNormalization BitShift "
    "BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Compress Concat "
    "Constant ConstantOfShape Conv ConvInteger Cos Cosh CumSum DepthToSpace DequantizeLinear Det "
    "Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor "
    "Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater "
    "GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity If InstanceNormalization "
    "IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul MatMulInteger "
    "Max MaxPool Mean Min Mish Mod Mul Neg NonZero Not OneHot Or PRelu Pad Pow QLinearConv "
    "QLinearMatMul QuantizeLinear RMSNormalization Range Reciprocal ReduceL1 ReduceL2 "
    "ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare Relu Reshape RotaryEmbedding Round ScatterElements ScatterND Selu Shape "
    "Sigmoid Sign SimplifiedLayerNormalization Sin Sinh Size Slice Softmax Softplus Softsign "
    "SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose "
    "Trilu Unsqueeze Where Xor"
)
_MICROSOFT = (
    "Attention BiasAdd BiasDropout BiasGelu BiasSoftmax DequantizeLinear DynamicQuantizeMatMul "
    "EmbedLayerNormalization FastGelu FusedGemm FusedMatMul GatherBlockQuantized Gelu "
    "GroupQueryAttention MatMulInteger16 MatMulIntegerToFloat MatMulNBits MoE MultiHeadAttention "
    "QAttention QEmbedLayerNormalization QGemm QLinearAdd QLinearConcat QLinearMul "
    "QLinearSigmoid QLinearSoftmax QMoE QOrderedMatMul QuantizeLinear QuickGelu RotaryEmbedding "
    "SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization "
    "SparseAttention"
)
OPERATORS = {
    "": frozenset(_STANDARD.split()),
    "ai.onnx": frozenset(_STANDARD.split()),
    "com.microsoft": frozenset(_MICROSOFT.split()),
}
