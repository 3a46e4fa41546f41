// What the bundle's Swift uses of Apple's CoreGraphics, as its documentation declares it. It draws
// nothing.
import Foundation

public enum CGColorSpaceModel { case rgb, monochrome }

public final class CGColorSpace {
    public static let sRGB = "sRGB" as NSString
    public let model = CGColorSpaceModel.rgb
    public init?(name: NSString) {}
}

public final class CGColor {
    public init?(colorSpace: CGColorSpace, components: [CGFloat]) {}
}

public enum CGImageAlphaInfo: UInt32 { case noneSkipLast = 5 }

public final class CGImage {
    public let width: Int
    public let height: Int
    public let colorSpace: CGColorSpace? = nil
    public init(width: Int, height: Int) {
        self.width = width
        self.height = height
    }
}

public final class CGContext {
    public init?(
        data: UnsafeMutableRawPointer?, width: Int, height: Int, bitsPerComponent: Int,
        bytesPerRow: Int, space: CGColorSpace, bitmapInfo: UInt32
    ) {}
    public func setFillColor(_ color: CGColor) {}
    public func fill(_ rect: CGRect) {}
    public func draw(_ image: CGImage, in rect: CGRect) {}
}
