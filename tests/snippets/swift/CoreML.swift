// What the bundle's Swift uses of Apple's Core ML, as its documentation declares it. It keeps the
// numbers that a network is given, in the file that CAPTURED names, and answers nothing.
import CoreVideo
import Foundation

public enum MLComputeUnits { case all, cpuOnly }

public final class MLModelConfiguration {
    public var computeUnits = MLComputeUnits.all
    public init() {}
}

public protocol MLShapedArrayScalar {}
extension Float: MLShapedArrayScalar {}
extension Double: MLShapedArrayScalar {}
#if !os(macOS) || arch(arm64)
extension Float16: MLShapedArrayScalar {}
#endif

public final class MLMultiArray {}

public struct MLShapedArray<Scalar: MLShapedArrayScalar> {
    public let scalars: [Scalar]
    public init(scalars: [Scalar], shape: [Int]) { self.scalars = scalars }
    public init(converting array: MLMultiArray) { scalars = [] }
}

public final class MLFeatureValue {
    public let multiArrayValue: MLMultiArray? = MLMultiArray()
    public let dictionaryValue: [AnyHashable: NSNumber] = [:]
    let bytes: Data
    public init(pixelBuffer: CVPixelBuffer) { bytes = Data() }
    public init<Scalar: MLShapedArrayScalar>(shapedArray: MLShapedArray<Scalar>) {
        bytes = shapedArray.scalars.withUnsafeBytes { Data($0) }
    }
}

public protocol MLFeatureProvider {
    func featureValue(for name: String) -> MLFeatureValue?
}

public final class MLDictionaryFeatureProvider: MLFeatureProvider {
    let values: [String: Any]
    public init(dictionary: [String: Any]) throws { values = dictionary }
    public func featureValue(for name: String) -> MLFeatureValue? { values[name] as? MLFeatureValue }
}

public final class MLModel {
    public init(contentsOf url: URL, configuration: MLModelConfiguration) throws {}
    public static func compileModel(at url: URL) throws -> URL { url }
    public func prediction(from input: MLFeatureProvider) throws -> MLFeatureProvider {
        if let file = ProcessInfo.processInfo.environment["CAPTURED"] {
            try input.featureValue(for: "image")!.bytes.write(to: URL(fileURLWithPath: file))
        }
        return Answer()
    }
}

final class Answer: MLFeatureProvider {
    func featureValue(for name: String) -> MLFeatureValue? {
        MLFeatureValue(shapedArray: MLShapedArray<Float>(scalars: [], shape: [0]))
    }
}
