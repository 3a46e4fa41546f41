// What the bundle's Swift uses of Apple's CoreVideo, as its documentation declares it.
import Foundation

public final class CVPixelBuffer {}
public typealias CVPixelBufferLockFlags = UInt64
public let kCVPixelFormatType_OneComponent8: UInt32 = 0x4C30_3038
public let kCVPixelFormatType_32BGRA: UInt32 = 0x4247_5241

@discardableResult
public func CVPixelBufferCreate(
    _ allocator: AnyObject?, _ width: Int, _ height: Int, _ format: UInt32, _ attributes: AnyObject?,
    _ made: UnsafeMutablePointer<CVPixelBuffer?>
) -> Int32 { 0 }

public struct LockFlags: OptionSet {
    public let rawValue: UInt64
    public init(rawValue: UInt64) { self.rawValue = rawValue }
}

@discardableResult
public func CVPixelBufferLockBaseAddress(_ buffer: CVPixelBuffer, _ flags: LockFlags) -> Int32 { 0 }
@discardableResult
public func CVPixelBufferUnlockBaseAddress(_ buffer: CVPixelBuffer, _ flags: LockFlags) -> Int32 { 0 }
public func CVPixelBufferGetBaseAddress(_ buffer: CVPixelBuffer) -> UnsafeMutableRawPointer? { nil }
public func CVPixelBufferGetBytesPerRow(_ buffer: CVPixelBuffer) -> Int { 0 }
